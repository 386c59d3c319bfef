"""What every bottleneck promises: features in, a code and its own loss terms out."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pipeline.code import Code
from pipeline.draws import Draws


class Bottleneck(nn.Module, ABC):
    """Squeezes features [B, N, inputs] into a code of `dim` channels a token."""

    inputs: int  # channels it reads
    dim: int  # channels of z
    vocab: int = 0  # codebook size; 0 when continuous
    codebooks: int = 1

    @classmethod
    def terms(cls, **arguments) -> tuple[str, ...]:
        """Names of the loss terms that `forward` returns, known without building."""
        return ()

    @abstractmethod
    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        """The code at its own scale and the unweighted terms. Without draws it is deterministic (the mode)."""

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the posterior, each [B, N, dim]; ValueError where there is no posterior."""
        raise ValueError(f"{type(self).__name__} has no posterior; set latents.posterior=mode")

    def lookup(self, ids: Tensor) -> Tensor:
        """ids [B, N] or [B, N, codebooks] to z [B, N, dim]; ValueError for a continuous bottleneck."""
        raise ValueError(f"{type(self).__name__} is continuous; it has no ids")
