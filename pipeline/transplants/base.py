"""What every way of a transplant promises: rows for the codes of another codebook, made of a trained network's."""

from abc import ABC, abstractmethod

from torch import Tensor

from pipeline.ranges import RangedArguments
from pipeline.similarities.base import Similarity


class Transplant(RangedArguments, ABC):
    """The rows of new codes in the tables of a network: of its embedding, of its head, and the head's biases."""

    similarity: Similarity | None = None  # what the rows depend on; None: nothing is compared

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def rows(self, old: Tensor, drawn: Tensor, similarity: Tensor | None) -> Tensor:
        """Rows [V_new, ...] from those that were trained, `old` [V_old, ...], or `drawn` [V_new, ...] as at first.

        `similarity` [V_new, V_old] is larger where two codes are nearer; None where nothing is compared.
        """
