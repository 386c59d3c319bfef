"""VAR's multi-scale tokenizer: codes, the maps they add up to, its losses and their gradients."""

import json
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_kinds import Case, bare, grid
from pipeline.code import Code
from pipeline.nn.scales import LevelTables, enlarge, nearest_kernels

MATCHES = "models.vqvae.VQVAE"
REPOSITORY = "FoundationVision/VAR"


def imported(case: Case, sides: list[int] | None = None) -> nn.Module:
    stated = case.meta["constructor"]
    options = {"phi_share": abs(stated["quant_resi"]), "by_angle": stated["using_znorm"]}
    return bare(case.imported("var_vqvae", sides=sides or stated["v_patch_nums"], **options)["tokenizer"])


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = imported(case)
    with torch.no_grad():
        found = encoded(case, tokenizer) | decoded(case, tokenizer)
    return found | trained(case, tokenizer)


def encoded(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    images = case.inputs["image"]
    features, code = tokenizer.features(images), tokenizer.encode(images)
    tables, side = tokenizer.neck.level_tables(), tokenizer.map_grid
    total, parts = tables.start(len(images)), list(tables.split(code.z))
    maps = []
    for level, part in enumerate(parts):
        total = tables.add(total, part, level)
        maps.append(total)
    other = json.loads(re.search(r"v_patch_nums = (\[[\d, ]+\])", case.call("indices_other_scales"))[1])
    return {
        "features": grid(features, *side),
        "indices": code.ids,
        **{f"f_hat_{level}": total for level, total in enumerate(maps)},
        "indices_other_scales": imported(case, other).encode(images).ids,
        "reconstruction": tokenizer.decode(code).clamp(-1, 1),
        "reconstruction_first_two_scales": tokenizer.decode_map(maps[1]).clamp(-1, 1),
    }


def decoded(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    codes, tables = case.inputs["codes"], tokenizer.neck.level_tables()
    rows = tables.rows(codes[..., None])
    first, second, *_ = tables.split(rows)
    one = tables.add(tables.start(len(codes)), first, 0)
    two = tables.add(one, second, 1)
    return {
        "var_input": tables.inputs(rows),
        "decoded_codes": tokenizer.decode(Code(ids=codes)).clamp(-1, 1),
        "decoded_codes_scale_1": tokenizer.decode_map(two).clamp(-1, 1),
        "decoded_codes_growing": tokenizer.decode_map(grown(tables, rows, 1)).clamp(-1, 1),
        "phi_index": torch.tensor(nearest_kernels(len(tables.sides), len(tokenizer.neck.offsets))),
        "incremental_f_hat": two,
        "incremental_next": tables.reduce(two, 2).mT.unflatten(2, (tables.sides[2],) * 2),
    }


def grown(tables: LevelTables, rows: Tensor, last: int) -> Tensor:
    """The map up to a level where that of every level has the level's own size."""
    total = None
    for level, part in enumerate(tables.split(rows)[: last + 1]):
        here = tables._replace(sides=tables.sides[: level + 1])
        total = here.add(here.start(len(rows)) if total is None else enlarge(total, here.sides[-1]), part, level)
    return total


def trained(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    tokenizer.train()
    rebuilt = tokenizer(case.inputs["image"])
    loss = rebuilt.terms["vq"] + case.meta["constructor"]["beta"] * rebuilt.terms["commit"]
    total = loss + F.mse_loss(rebuilt.images, case.inputs["image"])
    total.backward()
    neck = tokenizer.neck
    kernels = neck.kernels.grad[-neck.dim :, :, 1, 1]
    return {
        "train_reconstruction": rebuilt.images,
        "vq_loss": loss,
        "total": total,
        "grad_codebook": neck.quantizer.codebook.grad,
        "grad_quant_conv_bias": tokenizer.quant_conv.bias.grad,
        "grad_encoder_conv_in": tokenizer.encoder.conv_in.weight.grad,
        "grad_phi_0": neck.offsets.grad[0],
        "grad_phi_last": kernels,
    }
