"""Numbers that are not finite: refused where a result leaves the line, by the images that they are of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

SHOWN = 3  # images that a message names


class NotFinite(FloatingPointError):
    """`what` of some images of a batch is NaN or infinite. `rows` are their places in the batch at hand.

    The message names them by `numbers` and `seeds` once these are known, see `of_images`.
    """

    def __init__(
        self, what: str, rows: Sequence[int], numbers: Sequence[int] | None = None, seeds: Sequence[int] | None = None
    ):
        super().__init__(what, rows)
        self.what, self.rows, self.numbers, self.seeds = what, list(rows), numbers, seeds

    def of_images(self, numbers: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> "NotFinite":
        """The same, with the numbers and the seeds of the batch's images; those that are None stay as they are."""
        return NotFinite(
            self.what,
            self.rows,
            self.numbers if numbers is None else numbers,
            self.seeds if seeds is None else seeds,
        )

    def __str__(self) -> str:
        names = []
        for row in self.rows[:SHOWN]:
            name = f"image {row if self.numbers is None else self.numbers[row]}"
            names.append(name if self.seeds is None else f"{name} (seed {self.seeds[row]})")
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        return (
            f"{self.what} of {', '.join(names)}{more} holds numbers that are not finite; compute in fp32 or bf16, take"
            " a smaller guidance scale, or train with a lower rate"
        )


@contextmanager
def naming_images(numbers: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> Iterator[None]:
    """Add the numbers and the seeds of the batch's images to a NotFinite that is raised inside."""
    try:
        yield
    except NotFinite as error:
        raise error.of_images(numbers, seeds) from None


def check_finite(values: Tensor, what: str) -> None:
    """NotFinite where a row of `values` [B, ...], which are `what` of the images of a batch, is not finite."""
    if not bool(values.isfinite().all()):
        finite = values.isfinite().flatten(1).all(dim=1)
        raise NotFinite(what, (~finite).nonzero()[:, 0].tolist())
