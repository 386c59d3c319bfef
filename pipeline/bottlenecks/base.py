"""What every bottleneck promises: features in, a code and its own loss terms out."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, plain_ids, stack_ids
from pipeline.components import Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn.straight_through import straight_through


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


class Quantizer(Bottleneck):
    """A bottleneck whose z is one of finitely many vectors; in float32 whatever the precision of h.

    `latents` brings features into the space of those vectors and `quantize` takes the nearest there: two steps, so
    that quantisers can be put together.
    """

    calls: int = 1  # times that one pass through the whole calls this module

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        with torch.autocast(h.device.type, enabled=False):
            code, terms = self.quantize(self.latents(h.float()), draws)
        return Code(z=code.z.to(h.dtype), ids=code.ids), terms

    def latents(self, h: Tensor) -> Tensor:
        """h [B, N, inputs] in the space of the code vectors, [B, N, dim]."""
        return h

    @abstractmethod
    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        """The code of latents [B, N, dim], with a gradient to them, and the terms."""

    def carry(self, value: Tensor, latents: Tensor) -> Tensor:
        """`value` with the gradient that this quantiser gives to `latents`."""
        return straight_through(value, latents)


class Composite(Quantizer):
    """Quantisers of one kind put together: ids [B, N, codebooks], terms that are means over the parts.

    With `shared`, all of them are one and the same module.
    """

    def __init__(self, bottleneck: Node, codebooks: int, shared: bool = False):
        super().__init__()
        if codebooks < 1:
            raise ValueError(f"{codebooks} codebooks are none; set codebooks to 2 or more")
        own = 1 if shared else codebooks
        self.parts = nn.ModuleList(components.build("bottlenecks", bottleneck) for _ in range(own))
        if not isinstance(self.parts[0], Quantizer):
            raise ValueError(f"only quantisers can be put together; {bottleneck['kind']} has no ids")
        self.repeats = codebooks // own
        for module in self.parts.modules():
            if isinstance(module, Quantizer):
                module.calls = module.calls * self.repeats
        self.vocab, self.codebooks = self.parts[0].vocab, codebooks * self.parts[0].codebooks

    @classmethod
    def terms(cls, bottleneck: Node, **arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", bottleneck)
        return part.terms(**values)

    def each(self) -> list[Quantizer]:
        """The parts in order, a shared one as often as it is called."""
        return list(self.parts) * self.repeats

    def draws_of(self, number: int, draws: Draws | None) -> Draws | None:
        return None if draws is None else PartDraws(draws, f"codebook_{number}")

    def together(self, found: list[tuple[Code, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The parts' ids in a row, and their terms' means."""
        ids = torch.cat([stack_ids(code.ids) for code, _ in found], dim=-1)
        terms = {name: torch.stack([terms[name] for _, terms in found]).mean() for name in found[0][1]}
        return plain_ids(ids), terms

    def apart(self, ids: Tensor) -> list[Tensor]:
        """Every part's ids of those of the whole, the inverse of `together`."""
        return [plain_ids(own) for own in stack_ids(ids).chunk(len(self.each()), dim=-1)]
