"""The task of training a tokenizer, and of post-training its decoder: rebuild images, optionally against a critic."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import components
from pipeline.checks.phase import check_task
from pipeline.components import Arguments
from pipeline.critics.base import Critic
from pipeline.draws import StepDraws
from pipeline.losses.base import Loss
from pipeline.nn.branched import last_layer_of
from pipeline.nn.code_usage import CodeUsage
from pipeline.nn.map_transform import MapTransform
from pipeline.nn.processes import sum_over_processes, world_size
from pipeline.recipes.building import plan_built_tokenizer
from pipeline.recipes.tokenizer_training import Phase
from pipeline.runs.precision import without_autocast
from pipeline.tokenizers.base import Perturb, Tokenizer, TokenizerOutput
from pipeline.training.adversarial_game import AdversarialGame, gradient
from pipeline.training.equivariance import draw_transforms
from pipeline.training.loss_heads import attach_heads

EPSILON = 1e-4  # of the ratio of gradients in `phase.balance`, as in VA-VAE


class Reconstruction:
    """Two players at most: the tokenizer, frozen but for `phase.train`, or but for `phase.only` of it, and a critic.

    The terms are those of the tokenizer, of the losses and `adversarial`; each has a weight in `phase.weights`, and
    each weight a term, or it is a ValueError. Heads that losses train are a part of the tokenizer's player. A term in
    `phase.balance` has its weight times the ratio of gradients, that of the pixel terms over its own, at the parameter
    stated. The critic's part is that of `pipeline.training.adversarial_game`; before its start the critic is not run.
    `phase.perturbation` changes the decoder's input in training alone; `phase.equivariance` transforms it
    and, alike, the images that losses and critic compare with. With accumulation adaptive weights are those of each
    micro-batch. `usage` counts the ids of discrete codes.
    """

    own_terms = True  # the tokenizer's, of what lies before its decoder, are among the terms
    judges: tuple[str, ...] = ("critic",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        phase: Phase,
        losses: dict[str, Loss],
        critic: Critic | None = None,
        usage: CodeUsage | None = None,
    ):
        if (critic is None) != (phase.adversary is None):
            raise ValueError("a phase with an adversary needs its critic, and a critic needs a phase with an adversary")
        plan = plan_built_tokenizer(tokenizer)
        check_task(phase, plan, critic and (type(critic), Arguments.from_config(critic)), from_codes=not self.own_terms)
        for loss in losses.values():
            loss.check(type(tokenizer), plan.arguments)
        trained = {id(parameter) for parameter in tokenizer.trainable(phase.train, phase.only)}
        for parameter in tokenizer.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.players: dict[str, nn.Module] = {"tokenizer": attach_heads(tokenizer, losses.values())}
        self.game = None if critic is None else AdversarialGame(phase.adversary, critic)
        if self.game is not None:
            self.players["critic"] = self.game.player
        self.last_layer = last_layer_of(tokenizer, phase.train)
        self.balanced = {term: tokenizer.get_parameter(name) for term, name in phase.balance.items()}
        self.new = {"tokenizer": names_with_own_rate(self.players["tokenizer"], tokenizer)}
        self.compared = (self.last_layer, *self.balanced.values())
        pixels = critic is not None or any(loss.of_pixels for loss in losses.values())
        self.arguments = {} if pixels else {"pixels": False}
        self.view = None
        if phase.train in tokenizer.can.branches:
            self.arguments["branch"], self.view = phase.train, partial(tokenizer.view, branch=phase.train)
        self.perturbation = components.build("perturbations", phase.perturbation) if phase.perturbation else None
        self.phase, self.losses, self.usage = phase, losses, usage
        self.weights = phase.weights  # of the step; as `phase.until` has them in `turns`
        self.metrics: dict[str, Tensor] = {}  # of the last turn, besides its terms
        self.starts = {} if phase.adversary is None else {"critic": phase.adversary.first}

    def beside(self) -> list[nn.Module]:
        return list(self.losses.values())

    def turns(self, batch: Any, draws: StepDraws, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The tokenizer's turn, then the critic's from its start on. `batch` holds `images` and `condition`."""
        self.weights = self.phase.weights_at(step)
        if self.view is not None:  # of a branch: its input, which all losses compare with
            batch = replace(batch, images=self.view(batch.images))
        before, after = draw_transforms(self.phase.equivariance, draws)
        if not before.changes_nothing:
            batch = replace(batch, images=before.of_images(batch.images))
        images, adversary = after.of_images(batch.images), self.phase.adversary  # the images are the target
        ramp = 0.0 if adversary is None else adversary.weight_factor(step)
        rebuilt = self.rebuild(batch, draws, step, **({} if after.changes_nothing else {"transform": after}))
        if self.usage is not None:
            self.usage.add(rebuilt.code.ids)
            self.metrics |= self.usage.values
        with self.arithmetic_of_losses(images.device):
            terms = self.tokenizer_terms(images, batch.images, rebuilt, ramp, draws)
        for loss in self.losses.values():
            self.metrics |= loss.metrics
        yield "tokenizer", terms
        if adversary is not None and adversary.learns(step):
            learned = self.rebuild_anew(batch, after) if adversary.rebuild else rebuilt.images
            with self.arithmetic_of_losses(images.device):
                terms = self.game.critic_terms(self.players["critic"], images, learned, draws)
            self.metrics |= self.game.metrics
            yield "critic", terms

    def held_out_terms(self, averages: Mapping[str, nn.Module], batch: Any, draws: StepDraws) -> dict[str, Tensor]:
        """The tokenizer's terms and those of the losses; nothing is perturbed or transformed."""
        if self.view is not None:
            batch = replace(batch, images=self.view(batch.images))
        weights = self.phase.weights_at(self.phase.loop.steps - 1)
        arguments = self.forward_arguments(batch.images)
        rebuilt = self.rebuild_by(averages["tokenizer"], batch, draws, **arguments)
        terms = {name: weights[name] * value for name, value in rebuilt.terms.items()}
        with self.arithmetic_of_losses(batch.images.device):
            for loss in self.losses.values():
                terms |= {name: weights[name] * value for name, value in loss(batch.images, rebuilt).items()}
        return terms

    def arithmetic_of_losses(self, device: torch.device) -> AbstractContextManager:
        """That of the stage, unless the phase has its losses in float32."""
        return nullcontext() if self.phase.loss_precision == "stage" else without_autocast(device)

    def rebuild(self, batch: Any, draws: StepDraws, step: int, **arguments: Any) -> TokenizerOutput:
        """The tokenizer's pass that the losses read, with the `arguments` that this step needs besides."""
        arguments |= self.forward_arguments(batch.images)
        if (perturb := self.perturb_of(draws, step)) is not None:
            arguments["perturb"] = perturb
        return self.rebuild_by(self.players["tokenizer"], batch, draws, **arguments)

    def perturb_of(self, draws: StepDraws, step: int) -> Perturb | None:
        """What gives the decoder's input in place of the code's z in a step; None where the decoder reads that."""
        return None if self.perturbation is None else partial(self.perturbation, draws=draws, step=step)

    def rebuild_by(self, player: nn.Module, batch: Any, draws: StepDraws, **arguments: Any) -> TokenizerOutput:
        """The pass of a tokenizer's player."""
        return player(batch.images, batch.condition, draws, **arguments)

    def forward_arguments(self, images: Tensor) -> dict[str, Any]:
        """What the losses have the tokenizer's pass take besides images, condition and draws."""
        arguments = dict(self.arguments)
        with self.arithmetic_of_losses(images.device):
            for loss in self.losses.values():
                arguments |= loss.forward_arguments(images)
        return arguments

    @torch.no_grad()
    def rebuild_anew(self, batch: Any, transform: MapTransform) -> Tensor:
        """The images that the updated tokenizer makes of this batch in evaluation, where nothing is perturbed."""
        arguments = self.arguments | ({} if transform.changes_nothing else {"transform": transform})
        player = self.players["tokenizer"].eval()
        rebuilt = player(batch.images, batch.condition, **arguments).images
        player.train()
        return rebuilt

    def tokenizer_terms(
        self, images: Tensor, encoded: Tensor, rebuilt: TokenizerOutput, ramp: float, draws: StepDraws
    ) -> dict[str, Tensor]:
        """The weighted terms, with their true values, of `encoded` images and of target `images`.

        Losses of pixels and the critic are differentiated once each, at the image; the sum of their gradients goes
        back through the tokenizer in one pass, see `with_gradient`. `ramp` is the fraction of the adversarial weight.
        """
        weights, values = self.weights, dict(rebuilt.terms)
        for loss in self.losses.values():
            if not loss.of_pixels:
                values |= loss(encoded if loss.of_code else images, rebuilt)
        terms = {name: weights[name] * value for name, value in values.items()}
        if rebuilt.images is None:
            return terms
        leaf = rebuilt.images.detach().float().requires_grad_()
        pixel_terms = self.pixel_terms(images, replace(rebuilt, images=leaf))
        total = gradient(sum(pixel_terms.values()), leaf) if pixel_terms else torch.zeros_like(leaf)
        terms |= {name: value.detach() for name, value in pixel_terms.items()}
        for name, layer in self.balanced.items():
            others = [terms[term] for loss in self.losses.values() if loss.rebuilds for term in loss.terms]
            pixels = Slope(rebuilt.images, total, sum(others) if others else None)
            terms[name] = terms[name] * self.balance(name, values[name], layer, pixels)
        if ramp:
            adversarial = self.game.tokenizer_terms(self.players["critic"], images, leaf, draws)
            balance = self.adversarial_balance(rebuilt.images, total, adversarial["adversarial"][1])
            for name, (value, slope) in adversarial.items():
                weight = ramp * weights[name] * (balance if name == "adversarial" else 1.0)
                terms[name] = weight * value
                total = total + weight * slope
        if carrier := next(iter(pixel_terms), "adversarial" if ramp else None):
            terms[carrier] = with_gradient(terms[carrier], rebuilt.images, total)
        return terms

    def pixel_terms(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        terms = {}
        for loss in self.losses.values():
            if loss.of_pixels:
                terms |= {name: self.weights[name] * value for name, value in loss(images, rebuilt).items()}
        return terms

    def balance(self, term: str, value: Tensor, layer: nn.Parameter, pixels: "Slope") -> Tensor:
        """|grad nll| / (|grad term| + 1e-4) at `layer`, at most `balance_largest`: Yao et al., arXiv:2501.01423, eq. 6.

        `value` is the unweighted term; nll are the terms of reconstruction.
        """
        scale = pixels.images.numel() ** 0.5  # as in `gradient`
        with without_autocast(pixels.images.device):
            nll = pixels.at(layer, scale)
            of_term = torch.autograd.grad(scale * value, layer, retain_graph=True)[0]
        balance = ratio(nll.float() / scale, of_term.float() / scale, self.phase.balance_largest, EPSILON)
        self.metrics[f"balanced_weight_{term}"] = self.weights[term] * balance
        return balance

    def adversarial_balance(self, images: Tensor, pixel_slope: Tensor, adversarial_slope: Tensor) -> Tensor:
        """|grad nll| / (|grad g| + epsilon) at the last layer, at most `largest`; 1 unless the weight is adaptive.

        Esser et al., arXiv:2012.09841, equation 7. The slopes are the two gradients at the rebuilt images; from
        there to the last layer it is one layer's weight gradient. Averaged over processes before the norms are taken.
        """
        adversary = self.phase.adversary
        if not adversary.adaptive:
            return pixel_slope.new_ones(())
        scale = images.numel() ** 0.5  # as in `gradient`
        slopes = [(scale * slope).to(images.dtype) for slope in (pixel_slope, adversarial_slope)]
        with without_autocast(images.device):
            at_layer = [torch.autograd.grad(images, self.last_layer, slope, retain_graph=True)[0] for slope in slopes]
        nll, of_critic = (slope.float() / scale for slope in at_layer)
        balance = ratio(nll, of_critic, adversary.largest, adversary.epsilon)
        self.metrics["adaptive_weight"] = self.weights["adversarial"] * balance
        return balance


def names_with_own_rate(player: nn.Module, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Names in the player of the parameters of the tokenizer's modules that learn at a rate of their own."""
    modules = [tokenizer.get_submodule(name) for name in tokenizer.can.own_rate]
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    return tuple(name for name, parameter in player.named_parameters() if id(parameter) in own)


@dataclass(frozen=True)
class Slope:
    """The gradient of the terms of reconstruction: of pixels, `slope` at the rebuilt `images`, and of `others`."""

    images: Tensor
    slope: Tensor
    others: Tensor | None = None

    def at(self, layer: nn.Parameter, scale: float) -> Tensor:
        """`scale` times the gradient at a parameter; the graph is kept."""
        slope = (scale * self.slope).to(self.images.dtype)
        found = torch.autograd.grad(self.images, layer, slope, retain_graph=True)[0]
        if self.others is None:
            return found
        return found + torch.autograd.grad(scale * self.others, layer, retain_graph=True)[0]


def ratio(nll: Tensor, term: Tensor, largest: float, epsilon: float) -> Tensor:
    """|nll| / (|term| + epsilon) of two gradients, at most `largest`; averaged over processes before their norms."""
    both = sum_over_processes(torch.stack([nll, term])) / world_size()
    return (both[0].norm() / (both[1].norm() + epsilon)).clamp(0, largest)


def with_gradient(value: Tensor, images: Tensor, slope: Tensor) -> Tensor:
    """`value`, with `slope` as its gradient at `images`."""
    surrogate = (images.float() * slope).sum()
    return value.detach() + (surrogate - surrogate.detach())
