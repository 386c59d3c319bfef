"""Every new code has the mean of all old rows."""

from torch import Tensor

from pipeline.transplants.base import Transplant


class Mean(Transplant):
    """The mean row, the same for every new code; what is between the tables is all that is kept."""

    def rows(self, old: Tensor, drawn: Tensor, similarity: Tensor | None) -> Tensor:
        return old.mean(dim=0, keepdim=True).expand(len(drawn), *old.shape[1:])
