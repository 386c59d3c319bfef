"""What a solver promises: which problem it solves, and how it carries a state from noise to data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor

from pipeline.components import find, kinds, structure
from pipeline.draws import Draws
from pipeline.ranges import InnerFraction, NotNegative, RangedFields
from pipeline.samplers.levels import Report, Velocity, ladder, unshifted
from pipeline.samplers.noise_chain import NoiseChain
from pipeline.samplers.paths import Path
from pipeline.samplers.reverse_sde import DiffusionForm, LastStep
from pipeline.validation import SettingError, suggestion


@dataclass(frozen=True)
class Flow:
    """A flow dz/du = velocity(z, u) along a path, to be followed from noise level `start` to data."""

    velocity: Velocity
    path: Path
    steps: int  # evaluations of the velocity
    draws: Draws  # the noise of step i is `draws.normal("step_i", ...)`
    shift: float = 1.0  # of the noise levels
    start: float = 1.0
    report: Report | None = None  # called after every step
    end: float = 0.0  # level before the shift, as a fraction of the start's, at which the result is read

    def levels(self, intervals: int, end: float = 0.0) -> list[float]:
        """`intervals` + 1 falling noise levels to `end`, or the flow's own; see `ladder`."""
        return ladder(intervals, self.shift, unshifted(self.start, self.shift), end or self.end)


class FlowSolver(RangedFields, ABC):
    """Follows a flow. Its fields are its settings."""

    solves: ClassVar[str] = "flow"
    linear_only: ClassVar[bool] = False  # whether it is for the linear path alone
    stops_early: ClassVar[bool] = False  # whether it can stop above the noise level of data

    @property
    def singular_at_noise(self) -> bool:
        """Whether it cannot start at u = 1 of a path whose alpha is 0 there."""
        return False

    def check(self, steps: int) -> None:
        """ValueError where the number of evaluations, or a setting, is out of range."""

    @abstractmethod
    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        """From z [B, N, C] at `flow.start` to data in exactly `flow.steps` evaluations."""


@dataclass(frozen=True)
class StochasticFlowSolver(FlowSolver):
    """Follows the reverse-time equation of a flow, which adds noise, and ends in a step without any."""

    diffusion: DiffusionForm = "sigma"  # w(u), how much noise is put in and taken out again
    diffusion_scale: NotNegative = 1.0
    last_step: LastStep = "mean"
    last_step_size: InnerFraction = 0.04  # before the shift

    @property
    def singular_at_noise(self) -> bool:
        return self.diffusion == "path"


@dataclass(frozen=True)
class ChainStep:
    """A state of a noise chain, and what the network predicts from it; tensors [B, N, C]."""

    chain: NoiseChain
    index: int  # of the state in the chain; 0 is the last before data
    z: Tensor
    mean: Tensor  # of p(z_{t-1} | z_t)
    log_variance: Tensor
    data: Tensor  # the expected data


class ChainSolver(RangedFields, ABC):
    """Steps down a chain of Gaussian noising steps. Its fields are its settings."""

    solves: ClassVar[str] = "noise_chain"

    def check(self) -> None:
        """ValueError where a setting is out of range."""

    @abstractmethod
    def step(self, state: ChainStep, draw: Callable[[], Tensor]) -> Tensor:
        """The state one step down; `draw()` is standard normal noise, which the last step takes none of."""


def solvers_of(problem: str) -> dict[str, type]:
    """The solvers of a problem, by kind."""
    solvers = {kind: find("solvers", kind) for kind in kinds("solvers")}
    return {kind: solver for kind, solver in solvers.items() if solver.solves == problem}


def read_solver_settings(record: type, problem: str, settings: Mapping[str, Any], where: str) -> Any:
    """A record whose field `solver` is one of the problem's, from flat values: the record's own and the solver's.

    Settings of other solvers may be given as long as they have their defaults. Raises SettingError for a value that
    does not fit, and for a setting that the chosen solver does not have.
    """
    solvers, dot = solvers_of(problem), f"{where}." if where else ""
    # by name: code that came with a folder and is loaded twice has two classes of each name
    standard = next(k for k, solver in solvers.items() if solver.__name__ == type(record().solver).__name__)
    kind = settings.get("solver", standard)
    if not isinstance(kind, str) or kind not in solvers:
        raise SettingError(f"{dot}solver", f": {kind!r} is not one of {', '.join(solvers)}")
    of_record, inner = [field.name for field in fields(record)], {field.name for field in fields(solvers[kind])}
    for name, value in settings.items():
        having = {other: solver for other, solver in solvers.items() if name in names_of(solver)}
        if name not in of_record and not having:
            known = list(
                dict.fromkeys([*of_record, *(field for solver in solvers.values() for field in names_of(solver))])
            )
            raise SettingError(f"{dot}{name}", f": there is no such setting{suggestion(name, known)}")
        if name not in of_record and name not in inner:
            check_unused(f"{dot}{name}", structure(next(iter(having.values())), {name: value}, where), name, having)
    solver = structure(solvers[kind], {name: value for name, value in settings.items() if name in inner}, where)
    rest = {name: value for name, value in settings.items() if name in of_record and name != "solver"}
    return replace(structure(record, rest, where), solver=solver)


def names_of(solver: type) -> list[str]:
    return [field.name for field in fields(solver)]


def check_unused(place: str, solver: Any, name: str, having: Mapping[str, type]) -> None:
    """SettingError where a setting of solvers that are not chosen is another than their default."""
    if getattr(solver, name) != getattr(type(solver)(), name):
        raise SettingError(place, f" is a setting of solver={' or '.join(having)}; choose it, or leave this out")
