"""LlamaGen's VQ tokenizer through the import of its checkpoint."""

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid
from pipeline.code import Code
from pipeline.published.llamagen_vq import convert

MATCHES = "tokenizer.tokenizer_image.vq_model.VQModel"
NOT_OURS = {
    "entropy_loss": "the entropy term, of weight 0 in LlamaGen's own training, is not part of vector_quantize yet"
}


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(convert(case.state)["tokenizer"])
    images, codes = case.inputs["image"], case.inputs["codes"]
    shape = tokenizer.grid(images)
    h = tokenizer.features(images)
    code, terms = tokenizer.neck(h)
    commit = case.number("commit", "losses")  # the weights that the stored losses hold
    return {
        "pre_quant": grid(h, *shape),
        "indices": code.ids.flatten(),
        "quantized": grid(tokenizer.neck.lookup(code.ids), *shape),
        "reconstruction": tokenizer(images).images,
        "decoded_codes": tokenizer.decode(Code(z=None, ids=codes), grid=shape),
        "code_vectors": tokenizer.neck.lookup(codes).flatten(0, 1),
        "vq_loss": terms["vq"],
        "commit_loss": commit * terms["commit"],
    }
