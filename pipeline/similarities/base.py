"""What every similarity of codes promises: how near each code of one tokenizer is to each code of another."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from pipeline.code import LatentSpec
from pipeline.ranges import RangedArguments
from pipeline.tokenizers.base import Tokenizer

ENTRIES = 2**28  # pairs of codes at most that are compared, a gigabyte a codebook


@dataclass(frozen=True)
class CodePair:
    """Two tokenizers, and the ids that both give the same pictures."""

    old: Tokenizer  # whose codes a network was trained on
    new: Tokenizer
    ids: Callable[
        [int], Iterator[tuple[Tensor, Tensor]]
    ]  # of so many pictures, in batches [B, N(, codebooks)], old first


class Similarity(RangedArguments, ABC):
    """How near every new code is to every old one: larger numbers are nearer, and each file says what they are."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def check(self, old: LatentSpec, new: LatentSpec) -> None:
        """ValueError with one line where the codes of these two cannot be compared so."""

    @abstractmethod
    def measure(self, pair: CodePair) -> list[list[Tensor]]:
        """[V_new, V_old] float32 of every segment of the code and every codebook of a token; -inf where it is none.

        V counts codes; the end of a row is none.
        """


def check_count(old: LatentSpec, new: LatentSpec) -> None:
    """ValueError where there are more pairs of codes than can be compared one by one."""
    if old.vocab * new.vocab > ENTRIES:
        raise ValueError(
            f"{new.vocab} codes with {old.vocab} are more pairs than the {ENTRIES} that are compared; set kind=mean, or"
            " kind=random"
        )
