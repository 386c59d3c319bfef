"""Every new code has a row as a network begins with."""

from torch import Tensor

from pipeline.transplants.base import Transplant


class Random(Transplant):
    """Rows drawn as those of a new network, what the other ways are compared with.

    Unlike `reinitialise: [codes]` it leaves layers and rows that belong to no code (of a mask) as they were trained.
    """

    def rows(self, old: Tensor, drawn: Tensor, similarity: Tensor | None) -> Tensor:
        return drawn
