"""TA-TiTok through the import of its checkpoints; its published form has pixels in [0, 1]."""

import torch
from torch import Tensor

from golden_kinds import Case, bare, sequence
from golden_kinds.titok import options, row
from pipeline.code import Code, Condition
from pipeline.draws import GivenDraws, StepDraws
from pipeline.tokenizers.tatitok import TATiTok

MATCHES = "modeling.tatitok.TATiTok"


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(case.imported("tatitok", **options(case))["tokenizer"])
    continuous = "moments" in case.stored_names()
    with torch.no_grad():
        found = (of_posterior if continuous else of_codes)(case, tokenizer)
    return found if continuous else found | updated_codebook(case, tokenizer)


def of_codes(case: Case, tokenizer: TATiTok) -> dict[str, Tensor]:
    cost = case.meta["constructor"]["model"]["vq_model"]["commitment_cost"]
    code, terms = tokenizer.neck(tokenizer.features(case.inputs["image"] * 2 - 1))
    return {
        "indices": code.ids[:, None],
        "quantised": row(code.z),
        "codebook_loss": terms["vq"],
        "commitment_loss": cost * terms["commit"],
        "quantizer_loss": terms["vq"] + cost * terms["commit"],
    } | pictures(case, tokenizer, code.z, Code(ids=case.inputs["tokens"][:, 0]))


def of_posterior(case: Case, tokenizer: TATiTok) -> dict[str, Tensor]:
    h = tokenizer.features(case.inputs["image"] * 2 - 1)
    mean, _ = tokenizer.neck.split(h)
    sample, _ = tokenizer.neck(h, GivenDraws({"posterior": sequence(case.inputs["noise_0"])}))
    # token by token, for ours is a mean over all and theirs a sum over channels
    kl = [[tokenizer.neck(token)[1]["kl"] * tokenizer.neck.dim for token in one.split(1, dim=1)] for one in h.split(1)]
    found = {"moments": row(h), "mean": row(mean), "sample": row(sample.z), "kl": torch.tensor(kl)}
    return found | pictures(case, tokenizer, sample.z, Code(z=sequence(case.inputs["latents"])))


def pictures(case: Case, tokenizer: TATiTok, z: Tensor, given: Code) -> dict[str, Tensor]:
    """Of the image's code (a posterior's sample) with either caption, and of a given code, at the code's own scale."""
    captions = [Condition(text=case.inputs[name]) for name in ("text_guidance", "text_guidance2")]
    z_given = tokenizer.neck.lookup(given.ids) if given.z is None else given.z
    return {
        "reconstruction": (tokenizer.render(z, captions[0]) + 1) / 2,
        "reconstruction_other_text": (tokenizer.render(z, captions[1]) + 1) / 2,
        "decoded_tokens": (tokenizer.render(z_given, captions[0]) + 1) / 2,
    }


def updated_codebook(case: Case, tokenizer: TATiTok) -> dict[str, Tensor]:
    """Codebook and running use after a training's pass with each image, one after the other."""
    found = {}
    for name, words in (("image", "after_update"), ("image2", "after_second_update")):
        if f"codebook_{words}" in case.stored_names():
            images = case.inputs[name]
            tokenizer.train()
            with torch.no_grad():
                h = tokenizer.features(images * 2 - 1)
            tokenizer.neck(h.requires_grad_(), StepDraws(0, 0, slice(0, len(images)), len(images)))
            found[f"codebook_{words}"] = tokenizer.neck.codebook.detach().clone()
            found[f"embed_prob_{words}"] = tokenizer.neck.usage.clone()
    return found
