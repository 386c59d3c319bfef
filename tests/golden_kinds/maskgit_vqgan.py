"""MaskGIT's VQGAN through the import of its checkpoint; its published form has pixels in [0, 1]."""

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid
from pipeline.code import Code

MATCHES = "modeling.titok.PretrainedTokenizer"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(case.imported("maskgit_vqgan")["tokenizer"])
    images, codes, map_of_codes = case.inputs["image"] * 2 - 1, case.inputs["codes"], case.inputs["codes_grid"]
    side = round(codes.shape[1] ** 0.5)
    decoded, decoded_grid = (
        (tokenizer.decode(Code(z=None, ids=ids.flatten(1)), grid=shape) + 1) / 2
        for ids, shape in ((codes, (side, side)), (map_of_codes, tuple(map_of_codes.shape[1:])))
    )
    return {
        "pre_quant": grid(tokenizer.features(images), *tokenizer.grid(images)),
        "indices": tokenizer.encode(images).ids,
        "decoded": decoded.clamp(0, 1),
        "decoded_grid": decoded_grid.clamp(0, 1),
        "decoder_unclamped": decoded,
    }
