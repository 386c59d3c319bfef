"""Every new code has the row of the nearest old one."""

from torch import Tensor

from pipeline.components import Node, build
from pipeline.transplants.base import Transplant


class Nearest(Transplant):
    """The row of the nearest old code, the first one on ties: exact where codes have only changed their numbers."""

    def __init__(self, similarity: Node = {"kind": "co_occurrence"}):  # noqa: B006  it is not changed
        super().__init__()
        self.similarity = build("similarities", similarity)

    def rows(self, old: Tensor, drawn: Tensor, similarity: Tensor | None) -> Tensor:
        return old[similarity.argmax(dim=1)]
