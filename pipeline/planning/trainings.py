"""The trainings of a recipe as their stages build them, without weights and without images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pipeline.checks.recipe import CheckedRecipe
from pipeline.code import Code, Condition, LatentSpec
from pipeline.frozen.class_token import ClassToken
from pipeline.images.reading import ImageBatch
from pipeline.latents.code_source import CodeBatch
from pipeline.latents.encoding import Encoder, EncodingPlan
from pipeline.nn.running_norm import RunningNorm
from pipeline.planning.shadows import META, ShadowAccelerator, ShadowNetworks, placed
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.building import build_network, build_tokenizer_on_meta
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.generation import Generation
from pipeline.training.joint import JointTraining
from pipeline.training.joint_tasks import build_joint_task
from pipeline.training.pairs import PairBatch
from pipeline.training.phase_parts import build_critic, build_generator_losses, build_losses, generator_taps
from pipeline.training.posttraining import DecoderTraining
from pipeline.training.reconstruction import Reconstruction
from pipeline.training.soft_codes import SoftCodeTraining
from pipeline.training.tuning import tune


@dataclass(frozen=True)
class PlannedTraining:
    """A training that a recipe has, and how its task is built without weights."""

    place: str  # name of its section: tokenizer.phases.main
    loop: Loop
    precision: Precision
    build: Callable[[torch.device], Any]  # its task, on a device
    batch: Callable[[int], Any]  # a batch of so many images


@dataclass(frozen=True)
class Shadows:
    """What all trainings of a recipe are built of."""

    recipe: Recipe
    checked: CheckedRecipe
    classes: int

    @property
    def spec(self) -> LatentSpec:
        return self.checked.spec

    def phase(self, phase: Phase, device: torch.device) -> Reconstruction:
        tokenizer, losses, critic = self.parts(phase, device)
        return Reconstruction(tokenizer, phase, losses, critic)

    def decoder(self, device: torch.device) -> DecoderTraining:
        phase = self.recipe.posttrain.phase
        tokenizer, losses, critic = self.parts(phase, device)
        return DecoderTraining(tokenizer, phase, losses, critic)

    def generation(self, device: torch.device) -> Generation:
        part, objective = self.recipe.generator, self.checked.generator.objective
        with META:
            network = build_network(self.recipe, self.spec, self.classes, objective)
            new = tune(network, part)
            losses = build_generator_losses(self.recipe, generator_taps(self.networks()), network, 0)
        return Generation(placed(network, device), objective, part.weights, all_placed(losses, device), new)

    def generation_from_images(self, device: torch.device) -> Generation:
        """As `generation`, with the tokenizer that encodes the images of every step."""
        task, recipe = self.generation(device), self.recipe
        tokenizer = placed(build_tokenizer_on_meta(recipe).requires_grad_(False), device)
        feature = None
        if recipe.latents.class_token is not None:
            with META:
                feature = placed(self.networks().load(ClassToken(recipe)), device)
        plan = EncodingPlan(recipe.latents, recipe.seed, recipe.precision.latents, {}, feature)
        task.encoder = Encoder(tokenizer, plan, device)
        return task

    def joint(self, device: torch.device) -> JointTraining | SoftCodeTraining:
        joint = self.recipe.joint
        tokenizer, losses, critic = self.parts(joint.phase, device)

        def make_norm() -> RunningNorm:
            with META:
                norm = RunningNorm(torch.zeros(self.spec.dim), torch.ones(self.spec.dim), joint.epsilon, joint.momentum)
            return placed(norm, device)

        return build_joint_task(tokenizer, joint, losses, critic, self.generation(device), make_norm)

    def parts(self, phase: Phase, device: torch.device) -> tuple[Tokenizer, dict[str, Any], Any]:
        """The tokenizer, the losses and the critic of a phase."""
        tokenizer = build_tokenizer_on_meta(self.recipe)
        with META:
            losses, critic = build_losses(self.networks(), phase), build_critic(self.networks(), phase, 0)
        critic = critic and all_placed({"critic": critic}, device)["critic"]
        return placed(tokenizer, device), all_placed(losses, device), critic

    def networks(self) -> ShadowNetworks:
        return ShadowNetworks(self.recipe, None, None, ShadowAccelerator())

    def images(self, size: int) -> ImageBatch:
        return ImageBatch(torch.zeros(size, *self.recipe.data.image_shape), self.condition(size))

    def condition(self, size: int) -> Condition | None:
        labels = torch.zeros(size, dtype=torch.int64) if self.classes else None
        if self.recipe.text is None:
            return None if labels is None else Condition(labels)
        text = self.recipe.text.spec
        features = torch.zeros(size, text.tokens, text.layers * text.dim)
        pooled = torch.zeros(size, text.pooled) if text.pooled else None
        return Condition(labels, features, torch.ones(size, text.tokens, dtype=torch.bool), pooled)

    def code(self, size: int) -> Code:
        spec = self.spec
        if spec.vocab:
            ids = (size, spec.tokens, *([spec.codebooks] if spec.codebooks > 1 else []))
            return Code(ids=torch.zeros(ids, dtype=torch.int64))
        return Code(z=torch.zeros(size, spec.tokens, spec.dim))

    def codes(self, size: int) -> CodeBatch:
        code, recipe = self.code(size), self.recipe
        if width := self.checked.generator.objective.class_token:
            code = Code(code.z, code.ids, class_token=torch.zeros(size, width))
        std = torch.zeros_like(code.z) if recipe.latents.posterior == "moments" and code.z is not None else None
        images = self.images(size).images if recipe.hidden_losses else None
        return CodeBatch(code, std, self.condition(size), images=images)

    def pairs(self, size: int) -> PairBatch:
        return PairBatch(self.images(size).images, self.code(size), self.condition(size))


def all_placed(modules: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Losses, or a critic, on a device, with the frozen networks that they hold and that are no modules of theirs."""
    for module in modules.values():
        for held in (module, *hidden_modules(module)):
            placed(held, device)
    return modules


def hidden_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that a module holds without registering them, in attributes, lists and records."""
    for value in [value for name, value in vars(module).items() if not name.startswith("_")]:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, nn.Module):
                yield one
            elif hasattr(one, "__dict__"):
                yield from (inner for inner in vars(one).values() if isinstance(inner, nn.Module))


def planned(recipe: Recipe, checked: CheckedRecipe, classes: int) -> list[PlannedTraining]:
    """The trainings of a recipe in the order of the line; those of no steps are left out."""
    parts, words = Shadows(recipe, checked, classes), recipe.precision
    trainings = []
    for name, phase in recipe.tokenizer.phases.items():
        build = partial(parts.phase, phase)
        trainings.append(PlannedTraining(f"tokenizer.phases.{name}", phase.loop, words.tokenizer, build, parts.images))
    if recipe.joint is not None:
        trainings.append(PlannedTraining("joint", recipe.joint.phase.loop, words.joint, parts.joint, parts.images))
    if recipe.generator is not None:
        loop, stored = recipe.generator.loop, recipe.latents.store
        reads = (parts.generation, parts.codes) if stored else (parts.generation_from_images, parts.images)
        trainings.append(PlannedTraining("generator", loop, words.generator, *reads))
    if recipe.posttrain is not None:
        loop = recipe.posttrain.phase.loop
        trainings.append(PlannedTraining("posttrain", loop, words.posttrain, parts.decoder, parts.pairs))
    return [training for training in trainings if training.loop.steps]
