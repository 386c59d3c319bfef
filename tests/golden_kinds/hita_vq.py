"""Hita's tokenizer: its codes, images and rebuilt features, its losses and their gradients."""

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Code
from pipeline.losses.feature_reconstruction import FeatureReconstruction

MATCHES = "hita.tokenizer.tokenizer_image.vq_model.VQModel"


class Given(nn.Module):
    """A frozen encoder whose tokens are given."""

    def __init__(self, tokens: Tensor):
        super().__init__()
        self.given = tokens

    def tokens(self, images: Tensor) -> Tensor:
        return self.given


def imported(case: Case) -> nn.Module:
    """On a vision model of the width of the case, which is replaced by the given features and their grid."""
    config = case.meta["constructor"]["transformer_config"]
    encoder, decoder = (config[f"{half}_config"]["params"] for half in ("encoder", "decoder"))
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": encoder["in_channels"], "num_hidden_layers": 1, "num_attention_heads": 1}
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, patch_size=2, image_size=8)).save_pretrained(folder)
        options = {"start": folder, "heads": encoder["num_head"], "shift": decoder["shift_k"]}
        options |= {"encoder_grid": encoder["image_size"] // encoder["patch_size"]}
        options |= {"unit_norm": case.meta["constructor"]["codebook_l2_norm"]}
        tokenizer = bare(case.imported("hita_vq", **options)["tokenizer"])
    tokenizer.encoder = Given(case.inputs["vfm_tokens"])
    if tokenizer.reader.foundation is not None:
        side = round((case.inputs["vfm_tokens"].shape[1] - 1) ** 0.5)
        tokenizer.reader.foundation = tokenizer.reader.foundation._replace(grid=(side, side))
    for part in tokenizer.neck.parts:
        part.entropy_temperature = 0.01  # LlamaGen's quantiser, which the case does not repeat
    return tokenizer


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = imported(case)
    with torch.no_grad():
        values = encoded(case, tokenizer) | decoded(case, tokenizer)
    return values | trained(case, tokenizer)


def encoded(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    images, spec = case.inputs["image"], tokenizer.spec
    tokens, shape = spec.segment_tokens, spec.segments[1]
    maps = tokenizer.convolution(images)
    rows = tokenizer.holistic(sequence(maps), case.inputs["vfm_tokens"])
    holistic, patches = rows.split(tokens, dim=1)
    h, code = tokenizer.features(images), tokenizer.encode(images)
    read, made = tokenizer.neck.split(h, "inputs"), tokenizer.neck.split(code.z, "dim")
    ids = code.ids.split(tokens, dim=1)
    return {
        "conv_features": maps,
        "patch_features": grid(patches, *shape),
        "holistic_features": holistic,
        "pre_quant_patch": grid(read[1], *shape),
        "pre_quant_holistic": read[0],
        "quantized_patch": grid(made[1], *shape),
        "quantized_holistic": made[0],
        "indices_patch": ids[1].flatten(),
        "indices_holistic": ids[0].flatten(),
        "reconstruction": tokenizer.decode(code),
    }


def decoded(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    tokens, shape = tokenizer.spec.segment_tokens, tokenizer.spec.segments[1]
    parts = (case.inputs["codes_holistic"].view(-1, tokens[0]), case.inputs["codes_patch"].view(-1, tokens[1]))
    given = Code(ids=torch.cat(parts, dim=1))
    own, theirs = (
        tokenizer.entered(tokenizer.decoder_input(c)) for c in (tokenizer.encode(case.inputs["image"]), given)
    )
    values = {"decoder_grid": grid(tokenizer.reader(*own), *shape), "decoded_codes": tokenizer.decode(given)}
    if tokenizer.config.rebuild_features:
        values["vfm_reconstruction"] = tokenizer.reader.rebuild(own[0])
        values["decoded_vfm"] = tokenizer.reader.rebuild(theirs[0])
    return values


def trained(case: Case, tokenizer: nn.Module) -> dict[str, Tensor]:
    images, stated = case.inputs["image"], case.meta["constructor"]
    rebuilt = tokenizer.train()(images)
    weighted = {
        "vq_loss": rebuilt.terms["vq"],
        "commit_loss": stated["commit_loss_beta"] * rebuilt.terms["commit"],
        "entropy_loss": stated["entropy_loss_ratio"] * rebuilt.terms["entropy"],
        "rec_loss_twice": 2 * F.mse_loss(rebuilt.images, images),
    }
    if tokenizer.config.rebuild_features:
        weighted["vfm_loss"] = FeatureReconstruction()(images, rebuilt)["feature_reconstruction"]
    total = sum(weighted.values())
    total.backward()
    return weighted | {
        "train_reconstruction": rebuilt.images,
        "total_without_perceptual_and_gan": total,
        "grad_carrier_tokens": tokenizer.holistic.carriers.grad[None],
        "grad_slot_position_embedding": tokenizer.reader.holistic_positions.grad[None],
        "grad_position_embedding": tokenizer.reader.positions.grad[None],
        "grad_codebook_patch": tokenizer.neck.parts[1].codebook.grad,
        "grad_codebook_holistic": tokenizer.neck.parts[0].codebook.grad,
        "grad_encoder_conv_in": tokenizer.convolution.conv_in.weight.grad,
    }
