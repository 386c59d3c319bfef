"""Instella-T2I's binary autoencoder: code logits, bits, images, and the drawn bits of training with their gradients."""

import torch
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code
from pipeline.draws import GivenDraws
from pipeline.tokenizers.merging_vit import MergingViT

MATCHES = "bae.ae_model.BAE_Model"


def outputs(case: Case) -> dict[str, Tensor]:
    stated, images = case.meta["constructor"], case.inputs["image"]
    places = {
        f"{new}_after": [1 + i for i in stated[f"{old}sample_idx"]] for new, old in (("merge", "down"), ("split", "up"))
    }
    size = list(images.shape[2:])
    tokenizer = bare(case.imported("instella", image_size=size, axes=stated["axes_dims_rope"], **places)["tokenizer"])
    with torch.no_grad():
        h = tokenizer.features(images)
        code, terms = tokenizer.neck(h)
        found = {
            "encoder_output": h,
            "code_logits": tokenizer.neck.latents(h),
            "quantised": code.z,
            "code_loss": terms["uncertainty"],
            "codes": code.ids,
            "reconstruction": tokenizer.render(code.z),
            "decoded_codes": tokenizer.decode(Code(ids=case.inputs["codes"])),
        }
    return found | in_training(tokenizer, images, case.inputs["bernoulli_0"])


def in_training(tokenizer: MergingViT, images: Tensor, bits: Tensor) -> dict[str, Tensor]:
    """With given bits: a uniform number below every probability where one is set, and above where it is not."""
    uniform = torch.where(bits > 0, 0.0, 1 - 2**-24)
    code, terms = tokenizer.train().neck(tokenizer.features(images), GivenDraws({"bits": uniform}))
    states = tokenizer.decoder(code.z, tokenizer.grid)
    gradients = torch.autograd.grad(
        states.square().mean() + terms["uncertainty"], [tokenizer.neck.logits.weight, tokenizer.neck.rows]
    )
    return {
        "training_quantised": code.z,
        "training_code_loss": terms["uncertainty"],
        "grad.quantizer.proj.0.weight": gradients[0],
        "grad.quantizer.embed": gradients[1],
    }
