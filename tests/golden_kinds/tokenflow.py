"""TokenFlow's tokenizer: its ids, both decoders, the losses of a training step and their gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Code
from pipeline.draws import GivenDraws
from pipeline.losses.semantic_reconstruction import SemanticReconstruction
from pipeline.nn.scales import as_map
from pipeline.tokenizers.base import TokenizerOutput

MATCHES = "tokenflow.tokenizer.vq_model.TokenFlow"
SIDES = [1, 2, 3, 4]  # as the notes of the case say, beside the heads of both transformers
HEADS = {"encoder_heads": 4, "decoder_heads": 2}
TEMPERATURE = 0.01  # of the entropy, in LlamaGen's quantiser, which the case does not repeat
DROP = 0.1


class Given(nn.Module):
    """A teacher whose features are given."""

    name, width = "given", 0

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features

    def forward(self, images: Tensor, places: tuple[int, int]) -> Tensor:
        return self.features


def imported(case: Case) -> nn.Module:
    tokenizer = bare(case.imported("tokenflow", sides=SIDES, **HEADS)["tokenizer"])
    tokenizer.neck.quantizer.entropy_temperature = TEMPERATURE
    tokenizer.neck.drop = DROP
    return tokenizer


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = imported(case)
    with torch.no_grad():
        values = encoded(case, tokenizer) | decoded(case, tokenizer)
    values |= quantized(case, imported(case))
    values |= trained(case, imported(case), None, "train")
    return values | trained(case, imported(case), int(case.inputs["drop_scale"]), "dropped")


def encoded(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    quantizer, read = tokenizer.neck.quantizer, []
    own = quantizer.latents
    quantizer.latents = lambda h: read.append(h) or own(h)
    code = tokenizer.encode(case.inputs["image"])
    quantizer.latents = own
    z = tokenizer.decoder_input(code)
    inputs = read[1:]  # the first is the whole map, of which a codebook may begin
    return {
        "indices": code.ids,
        "quantized": grid(z, *tokenizer.map_grid),
        **{f"scale_input_{level}": as_map(rows, SIDES[level]) for level, rows in enumerate(inputs)},
        "semantic_reconstruction": sequence(tokenizer.rebuild_semantic(z)),
        "pixel_reconstruction": tokenizer.decode(code),
    }


def decoded(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    given = Code(ids=case.inputs["codes"])
    rows = tokenizer.neck.lookup(case.inputs["codes_prefix"])
    prefix = F.pad(rows, (0, 0, 0, tokenizer.spec.tokens - rows.shape[1]))  # no rows add nothing
    first = tokenizer.neck.decoder_input(prefix)
    return {
        "decoded_semantic": sequence(tokenizer.rebuild_semantic(tokenizer.decoder_input(given))),
        "decoded_pixels": tokenizer.decode(given),
        "decoded_semantic_prefix": sequence(tokenizer.rebuild_semantic(first)),
        "decoded_pixels_prefix": tokenizer.render(first),
    }


def weighted(case: Case, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    return {
        "vq_loss": terms["vq"],
        "commit_loss": stated["commit_loss_beta"] * terms["commit"],
        "entropy_loss": stated["entropy_loss_ratio"] * terms["entropy"],
    }


def quantized(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    quantizer, maps = tokenizer.neck.quantizer.train(), case.inputs["free_z"]
    latents = quantizer.latents(sequence(maps))
    code, terms = quantizer.quantize(latents)
    values = weighted(case, terms) | {"quantized": grid(code.z, *maps.shape[2:]), "indices": code.ids.flatten()}
    halves = zip(("semantic", "pixel"), *(each.split(quantizer.split, -1) for each in (latents, quantizer.rows())))
    for name, points, rows in halves:
        apart = (points.flatten(0, 1)[:, None] - rows).square().sum(dim=-1)  # [T, K]
        values[f"{name}_distance_norm"] = apart.square().sum(dim=-1).mean()
    return {f"free_{name}": value for name, value in values.items()}


def trained(case: Case, tokenizer: nn.Module, dropped: int | None, name: str) -> dict[str, Tensor]:
    """A step in which scale number `dropped` is left out."""
    images, neck = case.inputs["image"], tokenizer.train().neck
    share = 1.0 if dropped is None else DROP * (dropped - 0.5) / (len(SIDES) - 1)
    rebuilt = tokenizer(images, draws=GivenDraws({"dropped_scale": torch.full((len(images),), share)}))
    loss = SemanticReconstruction(Given(case.inputs["teacher"]))
    values = weighted(case, rebuilt.terms) | {"semantic_loss": semantic(loss, images, rebuilt)}
    total = F.mse_loss(rebuilt.images, images) + sum(values.values())
    total.backward()
    halves = neck.quantizer.codebook.grad.split(neck.split, dim=1)
    values |= {
        "semantic_reconstruction": sequence(rebuilt.features["rebuilt_semantic"]),
        "pixel_reconstruction": rebuilt.images,
        "total_without_perceptual_and_gan": total,
        "grad_codebook_semantic": halves[0],
        "grad_codebook_pixel": halves[1],
        "grad_encode_task_layer_2": tokenizer.to_semantic[2].weight.grad,
        "grad_quant_conv": tokenizer.quant_conv.weight.grad,
    }
    if dropped is not None:
        levels = rebuilt.code.ids.split([side * side for side in SIDES], dim=1)
        values["indices"] = torch.cat([ids for level, ids in enumerate(levels) if level != dropped], dim=1)
    return {f"{name}_{key}": value for key, value in values.items()}


def semantic(loss: SemanticReconstruction, images: Tensor, rebuilt: TokenizerOutput) -> Tensor:
    return loss(images, rebuilt)["semantic_reconstruction"]
