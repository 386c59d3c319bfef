"""Tokens that are sampled by a head of their own: which ones in a step, and the noise of each, whenever that is."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.code import Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.nn.embeddings import patchify, unpatchify
from pipeline.ranges import Count, NotNegative, RangedFields
from pipeline.samplers.unmasking import BASES, Schedule, halton_order


@dataclass(frozen=True)
class LatentUnmasking(RangedFields):
    """How masked tokens are filled in; the settings of the head's own sampler stand beside these. MAR's by default."""

    schedule: Schedule = "cosine"  # of the fraction masked after each step
    order: Literal["random", "halton"] = "random"  # in which tokens are settled
    head_steps: Count = 100  # evaluations of the head for a token
    temperature: NotNegative = 1.0  # of the noise that the head's solver adds at its steps
    start_temperature: NotNegative = 1.0  # of the noise that a token starts from

    def validate(self, steps: int, spec: LatentSpec) -> None:
        """ValueError with one line where these settings, or this number of steps, do not fit the codes."""
        if not 1 <= steps <= spec.tokens:
            raise ValueError(
                f"{steps} sampling steps for {spec.tokens} tokens: every step settles one token at least, so take"
                f" 1 to {spec.tokens}"
            )
        if self.order == "halton" and len(spec.grid) > len(BASES):
            raise ValueError(f"order=halton is for grids of up to {len(BASES)} axes; take order=random")

    def ranks(self, draws: Draws, grid: list[int]) -> Tensor:
        """What orders the tokens of each image, [B, M] float32: the highest is settled first."""
        uniform = draws.uniform("order", (torch.Size(grid).numel(),))
        if self.order == "random":
            return uniform
        return -halton_order(tuple(grid)).argsort().to(uniform).expand_as(uniform)


class HeadSampling(NamedTuple):
    """All settings of a sampling by heads."""

    own: LatentUnmasking
    head: Any  # of the head's sampler


class Patching(NamedTuple):
    """Codes [B, N, C] on a grid as the tokens [B, M, D] that a network reads, its patches."""

    grid: list[int]
    size: int

    @classmethod
    def of(cls, network: nn.Module) -> "Patching":
        """Those of a network, which may be in a wrapper for several processes."""
        config = getattr(network, "module", network).config
        return cls(list(config.grid), config.get("patch_size", 1))

    @property
    def patches(self) -> list[int]:
        """Their grid."""
        return [side // self.size for side in self.grid]

    def tokens(self, codes: Tensor) -> Tensor:
        return patchify(codes, self.grid, self.size)

    def codes(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.grid, self.size)

    def inside(self, places: Tensor) -> Tensor:
        """Which patches [B, M] lie in places of codes [B, N] bool as a whole."""
        return self.tokens(places[..., None]).all(dim=-1)


class RowDraws(Draws):
    """Draws of `rows` tokens an image, the first image's first, as one batch, for a head's training."""

    def __init__(self, draws: Draws, rows: int):
        self.draws, self.rows, self.step = draws, rows, draws.step

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.draws.normal(f"head.{name}", (self.rows, *shape)).flatten(0, 1)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return self.draws.uniform(f"head.{name}", (self.rows, *shape)).flatten(0, 1)


class PlaceDraws(Draws):
    """Draws of single tokens, [R, 1, D], for a head's sampling: those of whole codes, drawn once, at some places.

    So a token's noise does not depend on the step that it is settled in, nor on the other images.
    """

    def __init__(self, draws: Draws, spec: LatentSpec, patching: Patching, settings: LatentUnmasking):
        self.draws, self.spec, self.patching, self.settings = draws, spec, patching, settings
        self.drawn: dict[str, Tensor] = {}  # [B, M, D] by name
        self.places: Tensor | None = None  # [B, M] bool: the tokens at hand

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """At the start "start", and "step_i" at step i of the head; both [1, D] for a token."""
        if name not in self.drawn:
            temperature = self.settings.start_temperature if name == "start" else self.settings.temperature
            self.drawn[name] = temperature * self.patching.tokens(self.draws.normal(name, self.spec.shape))
        return self.drawn[name][self.places].view(-1, *shape)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        raise ValueError(f"a head's sampler draws normal noise alone, and no uniform number {name}")


class GivenState:
    """A head that knows the states [R, 1, width] of its tokens [R, 1, D], as samplers call a network."""

    def __init__(self, network: nn.Module, states: Tensor):
        self.network, self.states, self.dtype = network, states, states.dtype

    def __call__(self, z: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        return self.network.denoise(z, time[:, None], self.states)


def states_of(network: nn.Module, tokens: Tensor, masked: Tensor, condition: Condition | None) -> Tensor:
    """The network's states [B, M, width] of tokens [B, M, D], of which those `masked` [B, M] bool are not seen.

    Images with the same number of known tokens are asked for together.
    """
    counts = (~masked).sum(dim=1)
    tokens, parts, order = tokens.to(network.dtype), [], []
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero()[:, 0]
        known = masked[rows].int().argsort(dim=1, stable=True)[:, :count]
        parts.append(network.states(tokens[rows], known, None if condition is None else condition[rows]))
        order.append(rows)
    return torch.cat(parts)[torch.cat(order).argsort()]
