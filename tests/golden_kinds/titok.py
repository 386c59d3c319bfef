"""TiTok in its three forms through the import of its checkpoints; its published form has pixels in [0, 1]."""

import re

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Code
from pipeline.draws import GivenDraws
from pipeline.tokenizers.titok import TiTok

MATCHES = "modeling.titok.TiTok"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(case.imported("titok", **options(case))["tokenizer"])
    h = tokenizer.features(case.inputs["image"] * 2 - 1)
    return {"encoder_output": row(h)} | (continuous if "noise" in case.inputs else discrete)(case, tokenizer, h)


def options(case: Case) -> dict[str, object]:
    """Heads, which the notes state for sizes that are not published, and the norm of a codebook."""
    model = case.meta["constructor"]["model"]["vq_model"]
    heads = [int(count) for count in re.findall(r"(\d+) heads", case.meta.get("constructor_notes") or "")]
    stated = {"heads": heads[0], "decoder_heads": heads[-1]} if heads else {}
    codebook = model.get("quantize_mode", "vq") == "vq"
    return stated | ({"unit_norm": model.get("use_l2_norm", False)} if codebook else {})


def discrete(case: Case, tokenizer: TiTok, h: Tensor) -> dict[str, Tensor]:
    code, terms = tokenizer.neck(h)
    cost = case.meta["constructor"]["model"]["vq_model"]["commitment_cost"]
    found = {
        "indices": code.ids[:, None],
        "quantized": row(code.z),
        "codebook_loss": terms["vq"],
        "commitment_loss": cost * terms["commit"],
        "quantizer_loss": terms["vq"] + cost * terms["commit"],
        "reconstruction": (tokenizer.render(code.z) + 1) / 2,
        "decoded_tokens": (tokenizer.decode(Code(ids=case.inputs["tokens"])) + 1) / 2,
    }
    if tokenizer.config.head == "proxy":
        logits = tokenizer.output.logits(tokenizer.states(code.z))
        found["grid_logits"] = grid(logits, *tokenizer.output.grid)
    return found


def continuous(case: Case, tokenizer: TiTok, h: Tensor) -> dict[str, Tensor]:
    mean, logvar = tokenizer.neck.split(h)
    sample, _ = tokenizer.neck(h, GivenDraws({"posterior": sequence(case.inputs["noise"])}))
    # token by token, for ours is a mean over all and theirs a sum over channels
    kl = [[tokenizer.neck(token)[1]["kl"] * tokenizer.neck.dim for token in one.split(1, dim=1)] for one in h.split(1)]
    return {
        "mean": row(mean),
        "logvar": row(logvar),
        "sample": row(sample.z),
        "kl": torch.tensor(kl),
        "decoded_mean": (tokenizer.render(mean) + 1) / 2,
        "decoded_tokens": (tokenizer.render(sequence(case.inputs["latent"])) + 1) / 2,
    }


def row(tokens: Tensor) -> Tensor:
    """[B, N, C] to [B, C, 1, N]."""
    return grid(tokens, 1, tokens.shape[1])
