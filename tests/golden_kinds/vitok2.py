"""ViTok-v2's autoencoder through the import of its state; a batch of several grids is one image after another here."""

import torch
import torch.nn.functional as F
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code
from pipeline.nn.embeddings import rotary_tables
from pipeline.published.checkpoint import rename
from pipeline.published.vitok2 import NAMES, as_ours
from pipeline.tokenizers.vit_autoencoder import VitAutoencoder

MATCHES = "vitok.models.ae.AE"


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(case.imported("vitok2")["tokenizer"])
    patch = tokenizer.config.patch_size
    images, grids = pictures(case, patch), case.meta["constructor"]["grids"]
    codes = [tokenizer.neck(tokenizer.features(image))[0].z for image in images]
    rebuilt = [tokenizer.render(z, grid=tuple(grid)) for z, grid in zip(codes, grids)]
    given = [row[mask][None] for row, mask in zip(case.inputs["codes"], case.inputs["patch_mask"])]
    decoded = [tokenizer.decode(Code(z=z), grid=tuple(grid)) for z, grid in zip(given, grids)]
    reconstruction = padded(case, [patches_of(image, patch) for image in rebuilt])
    values = {
        "z": padded(case, codes),
        "z_without_mask": codes[0],
        "reconstruction": reconstruction,
        "decoded_codes": padded(case, [patches_of(image, patch) for image in decoded]),
    }
    loss = (reconstruction * case.inputs["grad_weight"]).sum()
    return values | rotary(case, tokenizer) | gradients(case, tokenizer, loss)


def pictures(case: Case, patch: int) -> list[Tensor]:
    """Each row's patches, whose values are colour, row, column, as an image of its own."""
    rows = zip(case.inputs["patches"], case.inputs["patch_mask"], case.meta["constructor"]["grids"])
    sides = [(row[mask].T[None], [side * patch for side in grid]) for row, mask, grid in rows]
    return [F.fold(columns, size, patch, stride=patch) for columns, size in sides]


def patches_of(image: Tensor, patch: int) -> Tensor:
    return F.unfold(image, patch, stride=patch).mT


def padded(case: Case, rows: list[Tensor]) -> Tensor:
    """Rows [1, n, C] in one batch, zero at places that are not there."""
    count = case.inputs["patch_mask"].shape[1]
    return torch.cat([F.pad(row, (0, 0, 0, count - row.shape[1])) for row in rows])


def rotary(case: Case, tokenizer: VitAutoencoder) -> dict[str, Tensor]:
    rows, columns = case.inputs["row_idx"], case.inputs["col_idx"]
    grid = int(rows.max()) + 1, int(columns.max()) + 1
    head_width = tokenizer.config.width // tokenizer.config.heads
    tables = rotary_tables(grid, head_width)  # a number for each of two neighbouring channels
    cosines, sines = (table[rows * grid[1] + columns, ::2] for table in tables)
    return {"rope_cosines": cosines, "rope_sines": sines}


def gradients(case: Case, tokenizer: VitAutoencoder, loss: Tensor) -> dict[str, Tensor]:
    values = {}
    for name in (name for name in case.stored if name.startswith("grad.")):
        theirs = case.stored[name]
        (ours,) = rename({name.removeprefix("grad."): theirs}, NAMES)
        found = torch.autograd.grad(loss, tokenizer.get_parameter(ours), retain_graph=True)[0]
        places = as_ours(ours, torch.arange(theirs.numel()).view_as(theirs), tokenizer.config.patch_size)
        values[name] = torch.empty_like(theirs).flatten()
        values[name][places.flatten()] = found.flatten()
        values[name] = values[name].view_as(theirs)
    return values
