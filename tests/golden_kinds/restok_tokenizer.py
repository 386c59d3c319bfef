"""ResTok's tokenizer: the map's levels, codes, any first tokens of them, training with its losses, and gradients."""

import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from golden_kinds.rectok import Given
from golden_kinds.titok import row
from pipeline.code import Code
from pipeline.draws import GivenDraws
from pipeline.losses.class_margin import ClassMargin
from pipeline.losses.feature_margin import FeatureMargin
from pipeline.perturbations.prefix_drop import PrefixDrop
from pipeline.teachers.base import Tap
from pipeline.tokenizers.restok import ResTok, standardise
from pipeline.training.loss_heads import attach_heads

MATCHES = "modeling.restok.ResTok"


class GivenClass(nn.Module):
    """A teacher whose class token of the images is given."""

    name = "given"

    def __init__(self, token: Tensor):
        super().__init__()
        self.token, self.width = token, token.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.token


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = imported(case)
    with torch.no_grad():
        return encoded(case, tokenizer) | decoded(case, tokenizer) | trained(case, imported(case).train())


def settings(case: Case) -> dict:
    return case.meta["constructor"]["model"]["vq_model"]


def imported(case: Case) -> ResTok:
    heads = [int(n) for n in re.findall(r"= \(\d+, \d+, (\d+)\)", case.meta["constructor_notes"])]
    options = {"heads": heads[0], "decoder_heads": heads[1], "unit_norm": settings(case)["use_l2_norm"]}
    options |= {"image_size": case.meta["constructor"]["dataset"]["preprocessing"]["crop_size"]}
    return bare(case.imported("restok", **options, single=settings(case)["num_min_tokens"])["tokenizer"])


def encoded(case: Case, tokenizer: ResTok) -> dict[str, Tensor]:
    images = case.inputs["image"] * 2 - 1
    maps = tokenizer.pixel_encoder(standardise(images))
    levels, _ = tokenizer.encoder.states(maps)
    places = levels[-1].shape[1]
    total = sum(F.interpolate(level.mT, size=places, mode="nearest") for level in levels)
    h, code = tokenizer.features(images), tokenizer.encode(images)
    return {
        "pixel_features": maps,
        "encoder_output": row(h),
        "quantized": row(tokenizer.neck.lookup(code.ids)),
        "indices": code.ids[:, None],
        "first_image_tokens_sum": grid(total.mT, *maps.shape[2:]),
        "last_image_tokens": row(levels[0]),
    } | {f"image_tokens_{i}": level for i, level in enumerate(levels)}


def decoded(case: Case, tokenizer: ResTok) -> dict[str, Tensor]:
    """Of the images' codes and of the given ids."""
    code, given = tokenizer.encode(case.inputs["image"] * 2 - 1), case.inputs["tokens"]
    lengths = [int(match[1]) for name in case.stored_names() if (match := re.fullmatch(r"decoded_(\d+)", name))]
    codes = {str(n): code.ids[:, :n] for n in lengths} | {"default": code.ids, "tokens": given}
    codes["tokens_short"] = given[:, : min(lengths)]
    found = {f"decoded_{name}": (tokenizer.decode(Code(ids=ids)) + 1) / 2 for name, ids in codes.items()}
    return found | {"test_indices": code.ids[:, None]}


def nested_dropout(case: Case) -> PrefixDrop:
    least, drop = settings(case)["num_min_tokens"], settings(case)["drop_prob"]
    return PrefixDrop("powers_of_two", "by_length", least, 1 - drop, "sample", "mask")


@torch.enable_grad()
def trained(case: Case, tokenizer: ResTok) -> dict[str, Tensor]:
    """Losses and gradients; the length of each image is drawn by the number in the middle of its share."""
    dropout, images = nested_dropout(case), case.inputs["image"] * 2 - 1
    chances = dropout.chances(tokenizer.spec.tokens)
    shares = torch.tensor(list(chances.values()))
    uniform = (shares.cumsum(0) - shares / 2)[case.inputs["keep_index"]]
    perturb = partial(dropout.perturb, draws=GivenDraws({"perturbation.length": uniform}), step=0)
    losses = margins(case, tokenizer)
    player = attach_heads(tokenizer, losses.values())
    rebuilt = player(images, None, None, perturb)
    terms = rebuilt.terms | {name: loss(images, rebuilt)[name] for name, loss in losses.items()}
    commit, made = settings(case)["commitment_cost"] * terms["commit"], (rebuilt.images + 1) / 2
    found = {
        "train_decoded": made,
        "nested_dropout_probs": shares,
        "nested_dropout_lengths": torch.tensor(list(chances)),
        "kept_lengths": dropout.count_kept(uniform, tokenizer.spec.tokens),
        "commitment_loss": commit,
        "codebook_loss": terms["vq"],
        "entropy_loss": settings(case)["entropy_loss_ratio"] * torch.ones(()),
        "quantizer_loss": commit + terms["vq"],
        "alignment_loss": terms["class_margin"] + terms["feature_margin"],
        "alignment_cos_encoder": losses["class_margin"].metrics["class_cosine_given"],
        "alignment_cos_decoder": losses["feature_margin"].metrics["margin_cosine_given"],
        "reconstruction_loss": F.mse_loss(made, case.inputs["image"]),
        "decoder_projection": grid(rebuilt.head_outputs["feature_margin"], *tokenizer.decoder.grid),
        "encoder_projection": projected_levels(tokenizer, images, losses["class_margin"]),
    }
    total = found["reconstruction_loss"] + found["quantizer_loss"] + found["alignment_loss"]
    leaves = {
        "latent_mask_token": tokenizer.decoder.dropped_token,
        "encoder_level_embedding_0": tokenizer.encoder.level_embedding,
        "codebook": tokenizer.neck.codebook,
        "encoder_patch_embed": tokenizer.encoder.embedding.weight,
        "vf_proj": losses["class_margin"].head.layers[0].weight,
    }
    gradients = {f"grad_{name}": grad for name, grad in zip(leaves, torch.autograd.grad(total, list(leaves.values())))}
    gradients["grad_latent_mask_token"] = gradients["grad_latent_mask_token"][None]
    gradients["grad_encoder_level_embedding_0"] = gradients["grad_encoder_level_embedding_0"][:1]
    return found | gradients | {"total_without_perceptual_and_gan": total}


def margins(case: Case, tokenizer: ResTok) -> dict[str, nn.Module]:
    """The two losses with the trained heads that the checkpoint holds and a tokenizer does not."""
    teacher = Tap(Given(sequence(case.inputs["teacher_feature"])))
    token = GivenClass(case.inputs["teacher_cls"].flatten(1))
    width, wide = tokenizer.config.width, tokenizer.config.decoder_width
    losses = {
        "class_margin": ClassMargin(token, width, [1, 1], "encoder.summary"),
        "feature_margin": FeatureMargin(teacher, wide, list(tokenizer.decoder.grid), "decoder.feature_map"),
    }
    for name, key in {"class_margin": "vf_proj", "feature_margin": "vf_proj_dec"}.items():
        losses[name].head.layers.load_state_dict({"0.weight": case.state[f"{key}.weight"][:, :, 0, 0]})
    return losses


def projected_levels(tokenizer: ResTok, images: Tensor, loss: ClassMargin) -> Tensor:
    levels, _ = tokenizer.encoder.states(tokenizer.pixel_encoder(standardise(images)))
    return row(loss.head(levels[0]))
