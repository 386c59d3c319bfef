"""What every objective promises: the loss a network is trained under, and the ways it is sampled by."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from diffusers import ConfigMixin, SchedulerMixin
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.samplers.guidance import Guidance

OnStep = Callable[
    [int, float, Tensor], Tensor | None
]  # (step, noise level or position, state) -> a state to go on from


class Objective(SchedulerMixin, ConfigMixin):
    """Time is the noise level u in [0, 1], u = 1 pure noise; `steps` is the number of network evaluations.

    Keyword-only arguments of `sample` beyond `on_step` are the sampler settings a recipe may state in `sample.sampler`.
    """

    order: int = 1  # diffusers asks schedulers for it
    role: str = "denoiser"  # of the networks it trains, see Network.role
    discrete: bool = False  # whether it models ids, and not z
    autoguided: bool = False  # whether a weaker network may guide it, see `pipeline.samplers.guidance`

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

    def steps_for(self, spec: LatentSpec, stated: int | None) -> int:
        """Network evaluations of a sampling: the number stated, if there is one."""
        return self.default_steps(spec) if stated is None else stated

    def check_sampler(self, steps: int, spec: LatentSpec, **sampler) -> None:
        """ValueError where these sampler settings, or this number of steps, do not fit the objective and the codes."""

    def check_codes(self, spec: LatentSpec) -> None:
        """ValueError where codes of this shape do not fit the objective's own settings."""

    def check_network(self, arguments: Arguments) -> None:
        """ValueError where a network with these constructor arguments cannot be trained by this objective."""

    @abstractmethod
    def draw(self, code: Code, draws: Draws) -> dict[str, Tensor | Draws]:
        """The random arguments of `loss` for this batch (times, noise, orders, masks, where dropout draws from)."""

    def asked(self, code: Code, condition: Condition | None, **draws: Any) -> tuple[Tensor, Tensor, Condition | None]:
        """What `loss` asks a denoiser of this batch: state, noise levels [B] and condition."""
        raise ValueError(f"a {type(self).__name__} trains no denoiser")

    @abstractmethod
    def loss(self, network: nn.Module, code: Code, condition: Condition | None, **draws: Any) -> dict[str, Tensor]:
        """Unweighted terms, means over the batch."""

    @abstractmethod
    def sample(
        self,
        network: nn.Module,
        condition: Condition | None,
        spec: LatentSpec,
        draws: Draws,
        steps: int,
        guidance: Guidance = Guidance(),
        on_step: OnStep | None = None,
    ) -> Code:
        """A code from noise: the start is `draws.normal("start", spec.shape)`.

        Where `autoguided`, it and `regenerate` take a network `weak` besides, for guidance to lead away from.
        """

    @abstractmethod
    def regenerate(
        self,
        network: nn.Module,
        code: Code,
        condition: Condition | None,
        preserve: float,
        draws: Draws,
        steps: int,
        guidance: Guidance = Guidance(),
    ) -> Code:
        """The generator's own version of `code`: preserve = 1 returns it exactly, 0 is a free sample."""


def check_share(preserve: float) -> None:
    """ValueError where what `regenerate` is to preserve is no share."""
    if not 0 <= preserve <= 1:
        raise ValueError(f"preserve={preserve} is a share; give a number from 0 to 1")
