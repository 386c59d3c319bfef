"""The code that a generator makes anew, what of it stays, and the field of a flow in which some tokens are known."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.code import Code
from pipeline.samplers.guidance import Predict
from pipeline.samplers.paths import Path


@dataclass(frozen=True)
class Original:
    """A batch of codes that `Objective.regenerate` starts from; ValueError where `preserve` is no fraction."""

    code: Code
    preserve: float  # how much of the tokens that are made anew stays: 1 all of it, 0 nothing
    kept: Tensor | None = None  # [B, N] bool: tokens that stay as they are; None: no token does

    def __post_init__(self) -> None:
        if not 0 <= self.preserve <= 1:
            raise ValueError(f"preserve={self.preserve} is a fraction; give a number from 0 to 1")

    @property
    def stays_whole(self) -> bool:
        """Whether nothing is made anew."""
        return self.preserve == 1 or (self.kept is not None and bool(self.kept.all()))

    def known(self, noise: Tensor) -> "KnownTokens | None":
        """The kept tokens of states with this noise [B, N + rows, C]; rows below those of the code are not kept."""
        if self.kept is None:
            return None
        below = noise.shape[1] - self.kept.shape[1]
        data, tokens = F.pad(self.code.z, (0, 0, 0, below)), F.pad(self.kept, (0, below))
        return KnownTokens(data, noise, tokens[..., None])

    def copy(self) -> Code:
        """The code itself, in tensors of its own."""
        return self.code.map(Tensor.clone)

    def restore(self, made: Code) -> Code:
        """What was made, with the kept tokens as they are in the original."""
        if self.kept is None:
            return made
        pairs = {name: (getattr(self.code, name), value) for name, value in vars(made).items() if value is not None}
        return Code(**{name: torch.where(per_token(self.kept, new), old, new) for name, (old, new) in pairs.items()})


def per_token(tokens: Tensor, values: Tensor) -> Tensor:
    """A mask of tokens [B, N] with the axes that broadcast it against `values` [B, N, ...]."""
    return tokens.view(*tokens.shape, *[1] * (values.ndim - 2))


@dataclass(frozen=True)
class KnownTokens:
    """Tokens of a state on the way from noise to data whose two ends are known."""

    data: Tensor  # [B, N, C]
    noise: Tensor  # [B, N, C]
    tokens: Tensor  # [B, N, 1] bool: which they are

    def put_into(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The state with alpha * data + sigma * noise in the place of the known tokens.

        RePaint (Lugmayr et al., arXiv:2201.09865, equation 8), with one noise for all levels.
        """
        return torch.where(self.tokens, alpha * self.data + sigma * self.noise, state)

    def field(self, velocity: Predict, path: Path) -> Predict:
        """`velocity` where the network sees known tokens on their path, along which these move, whatever the solver."""

        def of_state(z: Tensor, u: float) -> Tensor:
            level = torch.tensor(u, dtype=torch.float64)
            moved = velocity(self.put_into(z, path.alpha(level), path.sigma(level)), u)
            return torch.where(self.tokens, path.velocity(self.data, self.noise, level), moved)

        return of_state
