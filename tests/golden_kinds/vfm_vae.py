"""VFM-VAE's autoencoder through the import of its state, and its training through the task of training a tokenizer.

The vision model is replaced by the given features, which are shrunk where an image is shrunk before it is encoded.
"""

import re
import tempfile

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from golden_kinds import Case, bare, grid, sequence
from golden_kinds.robustok import BatchDraws
from golden_kinds.robustok_loss import StandIn
from pipeline.code import Code
from pipeline.critics.base import Critic
from pipeline.images.reading import ImageBatch
from pipeline.losses.multiscale_pixel import MultiscalePixel
from pipeline.losses.pixel import Pixel
from pipeline.losses.relational import Relational
from pipeline.published.checkpoint import rename
from pipeline.published.vfm_vae import NAMES, numbered
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.equivariance import Equivariance
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.base import Tap
from pipeline.tokenizers.pyramid import Pyramid
from pipeline.training.equivariance import draw_transforms
from pipeline.training.reconstruction import Reconstruction

MATCHES = "networks.generator.Generator with training.loss.TotalLoss"
FILTER = "bilinear"  # by which the release shrinks images for SigLIP 2
ACTIVATIONS = {"lrelu": "leaky_relu"}


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = imported(case)
    with torch.no_grad():
        values = encoder(case, tokenizer) | decoder(case, tokenizer) | first_level(case, tokenizer)
    return values | steps(case, tokenizer)


class Given(nn.Module):
    """Taps of a vision model that are given; of a smaller image they are shrunk alike, by area."""

    def __init__(self, case: Case):
        super().__init__()
        features = [case.inputs[f"features_{i}"] for i in range(len(case.meta["constructor"]["patch_from_layers"]))]
        side = round(features[0].shape[1] ** 0.5)
        self.features, self.size = [grid(each, side, side) for each in features], case.inputs["image"].shape[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        scale = images.shape[-1] / self.size
        sides = [round(side * scale) for side in self.features[0].shape[2:]]
        return [each if scale == 1 else F.interpolate(each, sides, mode="area") for each in self.features]


def state_of(case: Case, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}


def imported(case: Case) -> Pyramid:
    """On a vision model of the widths of the case, which is replaced by the given features."""
    stated = case.meta["constructor"]
    layers = max(2, *(layer + 1 for layer in stated["patch_from_layers"]))
    with tempfile.TemporaryDirectory() as folder:
        width = stated["patch_in_dimensions"][0]
        sizes = {
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 1,
        }
        config = SiglipVisionConfig(
            **sizes, image_size=2 * stated["vision_patch_size"], patch_size=stated["vision_patch_size"]
        )
        SiglipVisionModel(config).save_pretrained(folder)
        activation = stated["activation_for_concat_z"]
        options = {"taps": stated["patch_from_layers"], "activation": ACTIVATIONS.get(activation, activation)}
        size = None if stated["legacy"] else stated["img_resolution"]
        tokenizer = case.imported("vfm_vae", state_of(case, "G."), start=folder, image_size=size, **options)[
            "tokenizer"
        ]
    tokenizer.encoder = Given(case)
    return bare(tokenizer)


def encoder(case: Case, tokenizer: Pyramid) -> dict[str, Tensor]:
    values, sides = {}, case.inputs["latents"].shape[2:]
    for i, (tap, project, fold) in enumerate(
        zip(tokenizer.encoder(case.inputs["image"]), tokenizer.projections, tokenizer.folds)
    ):
        values[f"compressed_{i}"] = sequence(F.pixel_unshuffle(project(tap), fold))
    h = tokenizer.features(case.inputs["image"])
    draws = BatchDraws({"posterior": sequence(case.inputs["posterior_noise_0"])}, len(h))
    code, terms = tokenizer.neck(h, draws)
    loss = alignment_of(case, tokenizer)
    projected = loss.head(code.z, None, {}, None)
    values["vf_projected"] = grid(projected, *sides)
    values["vf_loss"] = loss.compare(projected, loss.tap(case.inputs["image"], loss.grid))["relational"]
    values |= {"moments": grid(h, *sides), "latent": grid(code.z, *sides), "kl_loss": terms["kl"] * code.z[0].numel()}
    return values


def decoder(case: Case, tokenizer: Pyramid) -> dict[str, Tensor]:
    latents, values = case.inputs["latents"], {}
    maps = tokenizer.post(latents)
    *scales, image = tokenizer.render_scales(latents)
    values |= {f"concat_{i}": read(maps) for i, read in enumerate(tokenizer.decoder.spatial)}
    values |= {f"decoded_scale_{i}": made for i, made in enumerate(reversed(scales))}
    half = case.inputs["rotated_latents"]
    return values | {
        "decompressed": maps,
        "style": tokenizer.decoder.mapping(maps),
        "decoded": image,
        "decode": tokenizer.decode(Code(z=sequence(latents))),
        "decode_half_size": tokenizer.decode(Code(z=sequence(half)), grid=tuple(half.shape[2:])),
    }


def first_level(case: Case, tokenizer: Pyramid) -> dict[str, Tensor]:
    maps, level = tokenizer.post(case.inputs["latents"]), tokenizer.decoder.levels[0]
    style, up = tokenizer.decoder.mapping(maps), level.enter(tokenizer.decoder.spatial[0](maps))
    values = {"block0_upsampled": up, "block0_convnext": level.blocks[0](up, style)}
    return values | ({"block0_attention": level.attention[0](up)} if level.attention else {})  # of `up` alone there


class Convolution(Critic):
    """The case's critic: a convolution without padding and the mean over places, in place of features of DINO."""

    @register_to_config
    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.lin = nn.Conv2d(3, width, kernel)

    def forward(self, images: Tensor) -> Tensor:
        return self.lin(images).mean(dim=(2, 3))


class LastTap(nn.Module):
    """The teacher: the last of the given taps."""

    name = "given"

    def __init__(self, case: Case):
        super().__init__()
        self.given = Given(case)
        self.widths = (self.given.features[-1].shape[1],)

    def maps(self, images: Tensor) -> list[Tensor]:
        return self.given(images)[-1:]


def critic_of(case: Case) -> Convolution:
    state = state_of(case, "D.")
    critic = Convolution(len(state["lin.weight"]), state["lin.weight"].shape[2])
    critic.load_state_dict(state)
    return bare(critic)


def alignment_of(case: Case, tokenizer: Pyramid) -> Relational:
    stated, weight = case.meta["constructor"], case.state["G.ldm_adapter.linear_proj.weight"][:, :, 0, 0]
    margins = {"cosine_margin": stated["cos_margin"], "matrix_margin": stated["distmat_margin"]}
    loss = Relational(Tap(LastTap(case)), weight.shape[1], list(tokenizer.spec.grid), **margins)
    loss.head.net.layers[0].weight.data.copy_(weight)
    return bare(loss)


def task_of(case: Case, tokenizer: Pyramid, scale: float, turn: int, prior: bool) -> Reconstruction:
    stated = case.meta["constructor"]["loss"]
    numel = case.inputs["latents"][0].numel() * (scale**2 if prior else 1)  # a sum there, a mean here
    weights = {
        "pixel": stated["l1_pixel_loss_weight"],
        "perceptual": stated["perceptual_loss_weight"],
        "multiscale_pixel": 1.0,
        "kl": stated["kl_loss_weight"] * numel,
        "relational": stated["vf_loss_weight"],
        "adversarial": stated["stylegan_t_discriminator_loss_weight"],
    }
    of_scales = dict(zip(stated["multiscale_block_indices"], stated["multiscale_pixel_loss_weights"]))
    scales = [of_scales.get(i, 0.0) for i in range(1 + max(of_scales))]
    losses = {
        "pixel": Pixel("l1"),
        "perceptual": StandIn(),
        "multiscale_pixel": MultiscalePixel(scales, FILTER),
        "relational": alignment_of(case, tokenizer),
    }
    drawn = {"codes": 0.0, "image_scales": (scale,)} if prior else {"codes": 1.0, "scales": (scale,), "turns": (turn,)}
    layer = f"joint.blocks.{len(tokenizer.joint.blocks) - 1}.feed_forward.down.weight"
    phase = Phase(
        Loop(1, {}),
        weights,
        {name: {"kind": name} for name in losses},
        balance={"relational": layer} if stated["use_adaptive_vf_loss"] else {},
        adversary=Adversary({"kind": "patch"}, adaptive=False),
        equivariance=Equivariance(images=1.0, filter=FILTER, **drawn),
    )
    return Reconstruction(tokenizer, phase, losses, critic_of(case))


def steps(case: Case, tokenizer: Pyramid) -> dict[str, Tensor]:
    """The generator's turn at each of the draws that the case states."""
    rows = re.findall(r"\(([\d.]+), (\d+), (True|False)\)", case.call("equivariance draws"))
    values = {}
    for i, (scale, turn, prior) in enumerate(rows):
        task = task_of(case, tokenizer, float(scale), int(turn), prior == "True")
        values |= {f"step_{i}.{name}": value for name, value in step(case, task, i).items()}
    return values


def step(case: Case, task: Reconstruction, number: int) -> dict[str, Tensor]:
    batch = ImageBatch(2 * case.inputs["image"] - 1)  # in [0, 1] there
    given = {f"equivariance.{name}": torch.zeros(len(batch.images)) for name in ("place", "scale", "turn")}
    given["posterior"] = sequence(case.inputs[f"posterior_noise_step_{number}_0"])
    draws = BatchDraws(given, len(batch.images))
    terms = next(iter(task.turns(batch, draws, 0)))[1]
    before, after = draw_transforms(task.phase.equivariance, draws)
    target = after.of_images(before.of_images(batch.images))
    rebuilt = task.rebuild(ImageBatch(before.of_images(batch.images)), draws, 0, transform=after)
    made, scales = rebuilt.features["scales"][::-1], task.losses["multiscale_pixel"]
    values = {"image": rebuilt.images, "target": target}
    for i, smaller in enumerate(made):
        values[f"target_scale_{i}"] = F.interpolate(target, smaller.shape[2:], mode=FILTER, antialias=True)
        values[f"multiscale_pixel_loss_block{i}"] = scales.error(smaller, target)
    values |= {
        "l1_pixel_loss": terms["pixel"] / task.phase.weights["pixel"],
        "perceptual_loss": terms["perceptual"] / task.phase.weights["perceptual"],
        "multiscale_pixel_loss": terms["multiscale_pixel"],
        "stylegan_t_loss": terms["adversarial"] / task.phase.weights["adversarial"],
        "vf_loss": terms["relational"]
        / task.metrics.get("balanced_weight_relational", task.phase.weights["relational"]),
        "kl_loss": terms["kl"] / case.meta["constructor"]["loss"]["kl_loss_weight"],
    }
    for name in (name for name in case.stored if name.startswith(f"step_{number}.grad.")):
        theirs = name.removeprefix(f"step_{number}.grad.")
        values[f"grad.{theirs}"] = gradient(task, sum(terms.values()), theirs, case.stored[name])
    return values


def gradient(task: Reconstruction, total: Tensor, name: str, value: Tensor) -> Tensor:
    player = task.players["tokenizer"]
    if name == "ldm_adapter.linear_proj.weight":
        parameter = player.heads["relational"].net.layers[0].weight
    else:
        (ours,) = rename(numbered({name: value}), NAMES)
        parameter = player.model.get_parameter(ours)
    return torch.autograd.grad(total, parameter, retain_graph=True)[0].reshape(value.shape)
