"""What every objective promises: the loss a network is trained under, and the ways it is sampled by."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from diffusers import ConfigMixin, SchedulerMixin
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, structure
from pipeline.draws import Draws
from pipeline.ranges import RangedArguments
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest
from pipeline.solvers.base import read_solver_settings, solvers_of


@dataclass(frozen=True)
class NoSettings:
    """Of a sampler with nothing to set."""


class DenoiserInput(NamedTuple):
    """What a denoiser is called with."""

    z: Tensor  # [B, N, C] the state
    time: Tensor  # [B] its noise levels
    condition: Condition | None


class Objective(RangedArguments, SchedulerMixin, ConfigMixin):
    """Time is the noise level u in [0, 1], u = 1 pure noise; `steps` is the number of network evaluations.

    `settings` is the record of its sampler's settings: its fields are what a recipe may state in `sample.sampler`.
    """

    order: int = 1  # diffusers asks schedulers for it
    role: str = "denoiser"  # of the networks it trains, see Network.role
    discrete: bool = False  # whether it models ids, and not z
    ends: bool = False  # whether it models rows of ids that end early, see LatentSpec
    autoguided: bool = False  # whether a weaker network may guide it, see `pipeline.samplers.guidance`
    settings: type = NoSettings  # of its sampler
    solves: str | None = None  # the problem of the solvers that `settings.solver` is chosen from, where there is one

    @property
    def outputs(self) -> int:
        """Channels the network predicts for each channel of z (2 with a learned variance)."""
        return 1

    @property
    def class_token(self) -> int:
        """Values of the class token that is modelled with the code; 0 where there is none."""
        return 0

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms."""

    def default_steps(self, spec: LatentSpec) -> int:
        """Network evaluations where nobody states a number."""
        return 50

    def steps_for(self, spec: LatentSpec, steps: int | None) -> int:
        """Network evaluations of a sampling: the number stated, if there is one."""
        return self.default_steps(spec) if steps is None else steps

    def setting_names(self) -> list[str]:
        """Names of the sampler's settings."""
        solvers = solvers_of(self.solves).values() if self.solves else []
        return list(dict.fromkeys(field.name for record in (self.settings, *solvers) for field in fields(record)))

    def read_settings(self, settings: Mapping[str, Any], where: str = "") -> Any:
        """The record of plain values, as recipes and callers state them; ValueError naming one that does not fit."""
        if self.solves:
            return read_solver_settings(self.settings, self.solves, settings, where)
        return structure(self.settings, settings, where)

    def check_sampler(self, steps: int, spec: LatentSpec, settings: Any) -> None:
        """ValueError where these sampler settings, or this number of steps, do not fit the objective and the codes."""

    def check_scheduler(self, scheduler: SchedulerMixin) -> None:
        """ValueError with one line unless this diffusers scheduler can take the place of the solver."""
        raise ValueError(f"{type(self).__name__} has its own sampler only; set pipe.scheduler = None")

    def check_codes(self, spec: LatentSpec) -> None:
        """ValueError where codes of this shape do not fit the objective's own settings."""

    def check_network(self, arguments: Arguments) -> None:
        """ValueError where a network with these constructor arguments cannot be trained by this objective."""

    @abstractmethod
    def draw(self, code: Code, draws: Draws) -> Any:
        """The randomness of `loss` for this batch, a record: times, noise, orders, masks, where dropout draws from."""

    def denoiser_input(self, code: Code, condition: Condition | None, randomness: Any) -> DenoiserInput:
        """What `loss` calls the denoiser with."""
        raise ValueError(f"a {type(self).__name__} trains no denoiser")

    @abstractmethod
    def loss(self, network: nn.Module, code: Code, condition: Condition | None, randomness: Any) -> dict[str, Tensor]:
        """Unweighted terms, means over the batch."""

    @abstractmethod
    def sample(self, request: SamplingRequest, settings: Any) -> Code:
        """A code from noise: the start is `draws.normal("start", spec.shape)`. `settings`: a record of `settings`."""

    @abstractmethod
    def regenerate(self, request: SamplingRequest, original: Original, settings: Any) -> Code:
        """The generator's own version of a code: preserve = 1 returns it exactly, 0 is a free sample of the same draws.

        Kept tokens are the original's, and the others are made to fit them. Image i depends on row i of the original
        and of the draws alone.
        """
