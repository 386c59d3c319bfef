"""The task of training a tokenizer, and of post-training its decoder: rebuild images, optionally against a critic."""

from collections.abc import Iterator
from dataclasses import replace
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
from pipeline.nn.map_transform import UNCHANGED
from pipeline.nn.processes import processes, summed
from pipeline.recipes.building import plan_of
from pipeline.recipes.schema import Phase
from pipeline.tokenizers.base import Rebuilt, Tokenizer
from pipeline.training.contest import Contest, gradient
from pipeline.training.equivariance import drawn
from pipeline.training.loss_heads import joined

LARGEST_ADVERSARIAL = 1e4  # ratio of gradients that adapts the weight of the adversarial term
LARGEST = 1e8  # that of any other term, as in VA-VAE


class Reconstruction:
    """Two players at most: the tokenizer, frozen but for `phase.train`, or but for `phase.only` of it, and a critic.

    The terms are those of the tokenizer, of the losses and `adversarial`; each has a weight in `phase.weights`, and
    each weight a term, or it is a ValueError. Heads that losses train are a part of the tokenizer's player. A term in
    `phase.balance` has its weight times the ratio of gradients, that of the pixel terms over its own, at the parameter
    stated. The critic's part is that of `pipeline.training.contest`; before it, the critic is not run.
    `phase.perturbation` changes what the decoder is shown, here and nowhere else; `phase.equivariance` transforms it
    and, alike, the images that losses and critic compare with. With accumulation adaptive weights are those of each
    micro-batch. `usage` counts the ids of discrete codes.
    """

    own_terms = True  # the tokenizer's, of what lies before its decoder, are among the terms

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
        plan = plan_of(tokenizer)
        check_task(phase, plan, critic and (type(critic), Arguments.from_config(critic)), from_codes=not self.own_terms)
        for loss in losses.values():
            loss.check(type(tokenizer), plan.arguments)
        trained = {id(parameter) for parameter in tokenizer.trainable(phase.train, phase.only)}
        for parameter in tokenizer.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.players: dict[str, nn.Module] = {"tokenizer": joined(tokenizer, losses.values())}
        self.contest = None if critic is None else Contest(phase.adversary, critic)
        if self.contest is not None:
            self.players["critic"] = self.contest.player
        self.last_layer = last_layer_of(tokenizer, phase.train)
        self.balanced = {term: tokenizer.get_parameter(name) for term, name in phase.balance.items()}
        pixels = critic is not None or any(loss.of_pixels for loss in losses.values())
        self.asked = {} if pixels else {"pixels": False}
        self.view = None
        if phase.train in tokenizer.can.branches:
            self.asked["branch"], self.view = phase.train, partial(tokenizer.view, branch=phase.train)
        self.perturbation = components.build("perturbations", phase.perturbation) if phase.perturbation else None
        self.phase, self.losses, self.usage = phase, losses, usage
        self.metrics: dict[str, Tensor] = {}  # of the last turn, besides its terms

    def turns(self, batch: Any, draws: StepDraws, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The tokenizer's turn, then the critic's from its start on. `batch` holds `images` and `condition`."""
        if self.view is not None:  # of a branch: what it is given, and what all losses compare
            batch = replace(batch, images=self.view(batch.images))
        before, after = drawn(self.phase.equivariance, draws)
        if before != UNCHANGED:
            batch = replace(batch, images=before(batch.images))
        images, adversary = after(batch.images), self.phase.adversary  # what is to be made
        contested = 0.0 if adversary is None else adversary.weight_factor(step)
        rebuilt = self.rebuild(batch, draws, step, **({} if after == UNCHANGED else {"transform": after}))
        if self.usage is not None:
            self.usage.add(rebuilt.code.ids)
            self.metrics |= self.usage.values
        terms = self.tokenizer_terms(images, batch.images, rebuilt, contested, draws)
        for loss in self.losses.values():
            self.metrics |= loss.metrics
        yield "tokenizer", terms
        if adversary is not None and adversary.learns(step):
            terms = self.contest.learned(self.players["critic"], images, rebuilt.images, draws)
            self.metrics |= self.contest.metrics
            yield "critic", terms

    def rebuild(self, batch: Any, draws: StepDraws, step: int, **asked: Any) -> Rebuilt:
        """The pass of the tokenizer that the losses look at; it is `asked` for more where a step needs that."""
        asked |= self.asked
        for loss in self.losses.values():
            asked |= loss.asks(batch.images)
        if self.perturbation is not None:
            asked["perturb"] = partial(self.perturbation, draws=draws, step=step)
        return self.players["tokenizer"](batch.images, batch.condition, draws, **asked)

    def tokenizer_terms(
        self, images: Tensor, encoded: Tensor, rebuilt: Rebuilt, contested: float, draws: StepDraws
    ) -> dict[str, Tensor]:
        """The weighted terms, with their true values, of `encoded` images and of those that are to be made of them.

        Losses of pixels and the critic are differentiated once each, at the image; what they add up to there goes
        back through the tokenizer in one pass, by way of `carrying`.
        """
        weights, found = self.phase.weights, dict(rebuilt.terms)
        for loss in self.losses.values():
            if not loss.of_pixels:
                found |= loss(encoded if loss.of_code else images, rebuilt)
        terms = {name: weights[name] * value for name, value in found.items()}
        if rebuilt.images is None:
            return terms
        leaf = rebuilt.images.detach().float().requires_grad_()
        pixel_terms = self.pixel_terms(images, replace(rebuilt, images=leaf))
        uphill = gradient(sum(pixel_terms.values()), leaf) if pixel_terms else torch.zeros_like(leaf)
        terms |= {name: value.detach() for name, value in pixel_terms.items()}
        for name, layer in self.balanced.items():
            terms[name] = terms[name] * self.balance(name, found[name], layer, rebuilt.images, uphill)
        if contested:
            told = self.contest.told(self.players["critic"], images, leaf, draws)
            balance = self.adversarial_balance(rebuilt.images, uphill, told["adversarial"][1])
            for name, (value, towards) in told.items():
                weight = contested * weights[name] * (balance if name == "adversarial" else 1.0)
                terms[name] = weight * value
                uphill = uphill + weight * towards
        if carrier := next(iter(pixel_terms), "adversarial" if contested else None):
            terms[carrier] = carrying(terms[carrier], rebuilt.images, uphill)
        return terms

    def pixel_terms(self, images: Tensor, rebuilt: Rebuilt) -> dict[str, Tensor]:
        found = {}
        for loss in self.losses.values():
            if loss.of_pixels:
                found |= {name: self.phase.weights[name] * value for name, value in loss(images, rebuilt).items()}
        return found

    def balance(self, term: str, value: Tensor, layer: nn.Parameter, made: Tensor, uphill: Tensor) -> Tensor:
        """|grad nll| / (|grad term| + 1e-4) at `layer`, clamped to [0, 1e8]: Yao et al., arXiv:2501.01423, equation 6.

        `value` is the unweighted term, `uphill` the gradient of the pixel terms at the image `made`.
        """
        scale = made.numel() ** 0.5  # as in `gradient`
        nll = torch.autograd.grad(made, layer, (scale * uphill).to(made.dtype), retain_graph=True)[0]
        own = torch.autograd.grad(scale * value, layer, retain_graph=True)[0]
        balance = ratio(nll.float() / scale, own.float() / scale, LARGEST)
        self.metrics[f"balanced_weight_{term}"] = self.phase.weights[term] * balance
        return balance

    def adversarial_balance(self, made: Tensor, uphill: Tensor, towards: Tensor) -> Tensor:
        """|grad nll| / (|grad g| + 1e-4) at the last layer, clamped to [0, 1e4]; 1 unless the weight is adaptive.

        Esser et al., arXiv:2012.09841, equation 7. `uphill` and `towards` are the two gradients at the image; from
        there to the last layer it is one layer's weight gradient. Averaged over processes before the norms are taken.
        """
        if not self.phase.adversary.adaptive:
            return uphill.new_ones(())
        scale = made.numel() ** 0.5  # as in `gradient`
        parts = [(scale * part).to(made.dtype) for part in (uphill, towards)]
        found = [torch.autograd.grad(made, self.last_layer, part, retain_graph=True)[0] for part in parts]
        balance = ratio(*(part.float() / scale for part in found), LARGEST_ADVERSARIAL)
        self.metrics["adaptive_weight"] = self.phase.weights["adversarial"] * balance
        return balance


def ratio(nll: Tensor, term: Tensor, largest: float) -> Tensor:
    """|nll| / (|term| + 1e-4) of two gradients, at most `largest`; averaged over processes before norms are taken."""
    both = summed(torch.stack([nll, term])) / processes()
    return (both[0].norm() / (both[1].norm() + 1e-4)).clamp(0, largest)


def carrying(value: Tensor, made: Tensor, uphill: Tensor) -> Tensor:
    """`value`, with `uphill` as its gradient at `made`."""
    surrogate = (made.float() * uphill).sum()
    return value.detach() + (surrogate - surrogate.detach())
