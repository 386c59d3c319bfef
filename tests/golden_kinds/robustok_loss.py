"""RobusTok's training against its critic of frozen DINO features, through the task of training a tokenizer.

Without a counterpart: the released non-saturating loss swaps the arguments of its cross-entropy, ours is the published
one. The released critic's loss is ours times the adversarial weight; loss terms that are given as numbers are added.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTModel

from golden_kinds import Case, bare, split_projections
from golden_kinds.robustok import BatchDraws
from pipeline.adversarial.hinge import Hinge
from pipeline.adversarial.nonsaturating import NonSaturating
from pipeline.critics.frozen_features import FrozenFeatures
from pipeline.images.reading import ImageBatch
from pipeline.losses.base import Loss
from pipeline.losses.pixel import Pixel
from pipeline.nn.augmentation import augment, blur
from pipeline.nn.critic_logits import LeCam
from pipeline.nn.patch_heads import assemble_patches
from pipeline.published.checkpoint import rename
from pipeline.recipes.adversary import Adversary, Augmentation
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.vision_model import VisionModel, approximate_gelu
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.latent_vit import LatentViT
from pipeline.training.reconstruction import Reconstruction
from pipeline.vision.backbone import IMAGENET

MATCHES = "tokenizer.tokenizer_image.vq_loss.VQLoss with disc_type dinodisc"
NOT_OURS = {"given_non_saturating*": "its arguments of the cross-entropy are swapped there"}
PER_BLOCK = r"blocks\.(\d+)\."
DINO = {
    r"cls_token": "embeddings.cls_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embeddings.projection.\1",
    r"norm\.(.*)": r"layernorm.\1",
    PER_BLOCK + r"norm1\.(.*)": r"layers.\1.layernorm_before.\2",
    PER_BLOCK + r"norm2\.(.*)": r"layers.\1.layernorm_after.\2",
    PER_BLOCK + r"attn\.proj\.(.*)": r"layers.\1.attention.o_proj.\2",
    PER_BLOCK + r"attn\.([qkv])\.(.*)": r"layers.\1.attention.\2_proj.\3",
    PER_BLOCK + r"mlp\.(fc[12])\.(.*)": r"layers.\1.mlp.\2.\3",
}
CONVOLUTIONS = {"0.0": "enter.convolution", "1.fn.0": "mix.convolution", "2": "leave"}
NORMS = {"0.1": "enter.norm", "1.fn.1": "mix.norm"}


def critic_names() -> dict[str, str]:
    names = {}
    for theirs, ours in CONVOLUTIONS.items():
        kinds = {"bias": "bias", "weight_orig": "weight", "weight_u": "direction"}
        for theirs_kind, ours_kind in kinds.items():
            names[rf"heads\.(\d+)\.{re.escape(theirs)}\.{theirs_kind}"] = rf"heads.\1.{ours}.{ours_kind}"
    for theirs, ours in NORMS.items():
        names[rf"heads\.(\d+)\.{re.escape(theirs)}\.(weight|bias)"] = rf"heads.\1.{ours}.\2"
    return names


class LastLayer(LatentViT):
    """A tokenizer whose last layer reads the given states, whatever the code."""

    hidden: Tensor

    def render(self, z: Tensor, condition: object = None, draws: object = None) -> Tensor:
        return assemble_patches(self.decoder.pixels(self.hidden), self.config.patch_size)


class StandIn(Loss):
    """In place of the perceptual network: mean squared difference of means over 2x2 pixels."""

    terms = ("perceptual",)

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        return {"perceptual": (F.avg_pool2d(images, 2) - F.avg_pool2d(rebuilt.images, 2)).square().mean()}


def outputs(case: Case) -> dict[str, Tensor]:
    critic = critic_of(case)
    return (
        readouts(case, critic)
        | augmented(case)
        | generator_turns(case, critic)
        | critic_turns(case, critic)
        | on_given_logits(case)
    )


def teacher_of(case: Case) -> VisionModel:
    stated = case.meta["constructor"]["dino"]
    state = split_projections(case.state, "dino.")
    sizes = {"hidden_size": stated["width"], "intermediate_size": len(state["blocks.0.mlp.fc1.bias"])}
    sizes |= {"image_size": stated["side"], "patch_size": stated["patch"], "layer_norm_eps": 1e-6}
    config = ViTConfig(num_hidden_layers=stated["depth"], num_attention_heads=stated["heads"], **sizes)
    model = ViTModel(config, add_pooling_layer=False)
    model.load_state_dict(rename(state, DINO, [r"x_scale", r"x_shift"]))
    layers = [0, *(key + 1 for key in stated["keys"])]
    teacher = VisionModel("vit", model, *IMAGENET, layers=layers, readout="class_token", resize="area")
    approximate_gelu(teacher)
    return bare(teacher)


def critic_of(case: Case) -> FrozenFeatures:
    teacher = teacher_of(case)
    prefix = "loss.discriminator."
    state = {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
    stated = case.meta["constructor"]
    kernel, norm = stated["dino"]["ks"], "batch" if stated["norm_type"] == "bn" else "group"
    critic = FrozenFeatures(list(teacher.widths), "dino", kernel=kernel, norm=norm, teacher_resize="area")
    critic.load_state_dict(rename(state, critic_names(), [r".*\.weight_v"]))
    return bare(critic).judge_by(teacher)


def readouts(case: Case, critic: FrozenFeatures) -> dict[str, Tensor]:
    maps = critic.extractor.module.maps(case.inputs["image"])
    heads = [head(each.flatten(2)) for head, each in zip(critic.heads, maps)]
    values = {f"feature_{i}": each.flatten(2) for i, each in enumerate(maps)}
    values |= {f"head_{i}": each[:, None] for i, each in enumerate(heads)}
    values["logits"] = torch.cat(critic(case.inputs["image"]), dim=1)
    if "logits_crop" in case.stored:
        images, side = case.inputs["image"], case.meta["constructor"]["dino"]["side"]
        row, column = (int(case.inputs[f"noise_logits_crop_{i}"].flatten()[0]) for i in (0, 1))
        values["logits_crop"] = torch.cat(critic(images[..., row : row + side, column : column + side]), dim=1)
    first = critic_of(case).heads[0].train()
    for i, layer in enumerate((first.enter.convolution, first.mix.convolution, first.leave)):
        layer.direction.copy_(case.inputs[f"training_direction_{i}"])
    return values | {"head_0_training": first(maps[0].flatten(2))[:, None]}


def draws_of(case: Case, noise: str, first: int = 0) -> Tensor:
    """[B, 10]: whether each change is made, then brightness, saturation, contrast, and both pairs of places."""
    done, how = case.inputs[f"{noise}_{first}"], case.inputs[f"{noise}_{first + 1}"].flatten(1)
    return torch.cat([done.expand(how.shape[1], -1), how[[2, 3, 4, 0, 1, 5, 6]].T], dim=1)


def augmented(case: Case) -> dict[str, Tensor]:
    images, values = case.inputs["image"], {}
    strengths = numbers(case, "DiffAug", r"schedule ([\d.]+), ([\d.]+) and ([\d.]+)")
    names = {"": "", "_blurred": "_blur", "_blurred_full": "_blur_full"}
    for (name, noise), strength in zip(names.items(), strengths):
        draws = BatchDraws({"augmentation": draws_of(case, f"noise_aug{noise}")}, len(images))
        blurred = blur(images, strength)
        values[f"augmented{name}"] = augment(blurred, draws, cutout=cutout(case), first="translation")
    return values


def numbers(case: Case, call: str, pattern: str) -> list[float]:
    """Those of the words of a call that a pattern's groups hold."""
    return [float(number) for number in re.search(pattern, case.call(call)).groups()]


def cutout(case: Case) -> float:
    return numbers(case, "DiffAug", r"cutout ([\d.]+)")[0]


def task_of(case: Case, critic: FrozenFeatures) -> Reconstruction:
    stated = case.meta["constructor"]
    weight, patch = case.inputs["last_weight"], int((len(case.inputs["last_bias"]) // 3) ** 0.5)
    neck = {"kind": "vector_quantize", "dim": 4, "vocab": 4}
    size, width = case.inputs["image"].shape[-1], weight.shape[1]
    tokenizer = bare(LastLayer(size, neck, width=width, depth=1, heads=1, patch_size=patch))
    for parameter, value in zip(tokenizer.decoder.pixels.parameters(), (weight, case.inputs["last_bias"]), strict=True):
        parameter.data.copy_(value)
    tokenizer.hidden = case.inputs["hidden"]
    weights = {"pixel": stated["reconstruction_weight"], "perceptual": stated["perceptual_weight"]}
    weights |= {"adversarial": stated["disc_weight"], "vq": 0.0, "commit": 0.0}
    adversary = Adversary(
        {"kind": "frozen_features"},
        start=stated["disc_start"],
        adaptive=stated["disc_adaptive_weight"],
        augmentation=Augmentation(stated["aug_prob"], cutout=cutout(case), first="translation", shared=False),
        lecam=stated["lecam_loss_weight"],
        lecam_means="before",
    )
    nodes = {"pixel": {"kind": "pixel", "norm": "l2"}, "perceptual": {"kind": "perceptual"}}
    phase = Phase(Loop(1, {}), weights, nodes, adversary=adversary)
    return Reconstruction(tokenizer, phase, {"pixel": Pixel("l2"), "perceptual": StandIn()}, critic)


def generator_turns(case: Case, critic: FrozenFeatures) -> dict[str, Tensor]:
    images, values, task = case.inputs["image"], {}, task_of(case, critic)
    stated = r"codebook_loss \(([\d.]+), ([\d.]+), ([\d.]+)\), semantic loss ([\d.]+)"
    given, start = sum(numbers(case, "generator turn", stated)), task.phase.adversary.start
    last = task.players["tokenizer"].decoder.pixels.weight
    for name, step in (("before_start", start - 1), ("step", start)):
        noise = draws_of(case, f"noise_generator_{name}")
        draws = BatchDraws({"tokenizer.augmentation": noise}, len(images))
        terms = next(iter(task.turns(ImageBatch(images), draws, step)))[1]
        values[f"{name}.generator_loss"] = sum(terms.values()) + given
        slope = torch.autograd.grad(sum(terms.values()), last, retain_graph=True)[0]
        values[f"{name}.generator_grad_last_layer"] = slope
    rebuilt = task.players["tokenizer"](images).images
    seen = task.game.augment(rebuilt, draws, "tokenizer")
    weights = task.phase.weights
    return values | {
        "reconstruction": rebuilt,
        "rec_loss": terms["pixel"] / weights["pixel"],
        "perceptual_stand_in": terms["perceptual"] / weights["perceptual"],
        "generator_logits_fake": torch.cat(critic(seen), dim=1),
        "generator_adv_loss": task.game.loss.generator_loss(critic(seen)),
        "adaptive_weight": task.metrics["adaptive_weight"] / weights["adversarial"],
    }


def critic_turns(case: Case, critic: FrozenFeatures) -> dict[str, Tensor]:
    images, values, task = case.inputs["image"], {}, task_of(case, critic)
    rebuilt, weight = task.players["tokenizer"](images).images, task.phase.weights["adversarial"]
    for i in range(3):
        noise = [draws_of(case, f"noise_discriminator_{i}", first) for first in (0, 2)]
        draws = BatchDraws({"fake.augmentation": noise[0], "real.augmentation": noise[1]}, len(images))
        loss = weight * sum(task.game.critic_terms(task.players["critic"], images, rebuilt, draws).values())
        values[f"discriminator_loss_{i}"] = loss
        means = task.game.means
        values |= {f"lecam_real_mean_{i}": means.real.clone(), f"lecam_fake_mean_{i}": means.fake.clone()}
        if i == 0:
            values |= critic_gradients(case, critic, loss)
    assert not task.phase.adversary.learns(task.phase.adversary.start - 1)
    return values | {"discriminator_loss_before_start": torch.zeros(())}


def critic_gradients(case: Case, critic: FrozenFeatures, loss: Tensor) -> dict[str, Tensor]:
    values = {}
    for name in (name for name in case.stored if name.startswith("discriminator_grad.")):
        (ours,) = rename({name.removeprefix("discriminator_grad."): case.stored[name]}, critic_names())
        values[name] = torch.autograd.grad(loss, critic.get_parameter(ours), retain_graph=True)[0]
    return values


def on_given_logits(case: Case) -> dict[str, Tensor]:
    scale, count = numbers(case, "losses on given logits", r"real = ([\d.]+) \* image.flatten\(1\)\[:, :(\d+)\]")
    images = case.inputs["image"], case.stored["reconstruction"]
    real, fake = (scale * each.flatten(1)[:, : int(count)] for each in images)
    means = LeCam(numbers(case, "losses on given logits", r"decay ([\d.]*\d)")[0], "before")
    return {
        "given_hinge": sum(Hinge().critic_loss(real, fake).values()),
        "given_vanilla": sum(NonSaturating().critic_loss(real, fake).values()),
        "given_hinge_generator": Hinge().generator_loss(fake),
    } | {f"given_lecam_{i}": means(real, fake) for i in range(2)}
