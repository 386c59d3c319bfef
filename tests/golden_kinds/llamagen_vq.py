"""LlamaGen's VQ tokenizer through the import of its checkpoint."""

import re

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid
from pipeline.code import Code

MATCHES = "tokenizer.tokenizer_image.vq_model.VQModel"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    unit_norm = case.meta["constructor"]["codebook_l2_norm"]
    tokenizer = bare(case.imported("llamagen_vq", unit_norm=unit_norm)["tokenizer"])
    images, codes = case.inputs["image"], case.inputs["codes"]
    shape = tokenizer.grid(images)
    h = tokenizer.features(images)
    tokenizer.neck.entropy_temperature = temperature(case)
    code, terms = tokenizer.neck(h)
    weights = {name: case.number(name, "losses") for name in ("commit", "entropy")}  # which the stored losses hold
    return {
        "pre_quant": grid(h, *shape),
        "indices": code.ids.flatten(),
        "quantized": grid(tokenizer.neck.lookup(code.ids), *shape),
        "reconstruction": tokenizer(images).images,
        "decoded_codes": tokenizer.decode(Code(z=None, ids=codes), grid=shape),
        "code_vectors": tokenizer.neck.lookup(codes).flatten(0, 1),
        "vq_loss": terms["vq"],
        "commit_loss": weights["commit"] * terms["commit"],
        "entropy_loss": weights["entropy"] * terms["entropy"],
    }


def temperature(case: Case) -> float:
    return float(re.search(r"softmax\(-distance / ([0-9.]+)\)", case.call("losses"))[1])
