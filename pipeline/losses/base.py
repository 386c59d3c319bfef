"""What every reconstruction loss promises."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.code import LatentSpec
from pipeline.components import Arguments
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import Rebuilt, Tokenizer


class Loss(nn.Module, ABC):
    """Terms of a tokenizer's loss, unweighted means per element; the recipe holds the weights.

    A constructor may take, under these names, what an earlier stage determines: `backbone`, `class_teacher`, `tap`, and
    of the code `dim` and `grid`.
    """

    terms: tuple[str, ...]  # names of the terms that `forward` returns
    any_channels: bool = False  # it looks at images of any channels, not of three colours alone
    of_pixels: bool = True  # it looks at rebuilt.images alone, so its gradient can be taken at the image
    of_code: bool = False  # it looks at the images that were encoded, where others are to be made
    reads: tuple[str, ...] = ()  # names of rebuilt.features that it needs

    def __init__(self):
        super().__init__()
        self.head: nn.Module | None = None  # trained with the tokenizer, no part of it: pipeline.training.loss_heads
        self.metrics: dict[str, Tensor] = {}  # of the last call, besides its terms, for the log alone

    @classmethod
    def needs(cls, arguments: Arguments) -> tuple[str, ...]:
        """Names of rebuilt.features that the loss needs with these arguments."""
        return cls.reads

    @classmethod
    def of_one_grid(cls, arguments: Arguments) -> bool:
        """Whether with these arguments it knows codes of the tokenizer's own grid alone, and none of smaller images."""
        return False

    @classmethod
    def validate(cls, spec: LatentSpec, arguments: Arguments) -> None:
        """ValueError where codes of this geometry and these stated arguments do not fit, known without building."""

    def check(self, tokenizer: type[Tokenizer], arguments: Arguments) -> None:
        """ValueError where a tokenizer with these constructor arguments does not make what is looked at here."""
        return

    def asks(self, images: Tensor) -> dict[str, Tensor]:
        """Arguments of the tokenizer's `forward` that the loss needs, for images [B, 3, H, W] in [-1, 1]."""
        return {}

    @abstractmethod
    def forward(self, images: Tensor, rebuilt: Rebuilt) -> dict[str, Tensor]:
        """images [B, 3, H, W] in [-1, 1] and what the tokenizer made of them."""


class Alignment(Loss):
    """A term that compares tokens on a grid, place by place, with the features of a frozen teacher.

    The tokens are a code's; with `block` the hidden states of a generator after that block; with `at` what the module
    of that name in a tokenizer makes. `tap` is a teacher's map, made from the `teacher`, `layer` and `teacher_size`
    that a recipe states, see `pipeline.frozen.alignment_teacher`; its name is a part of every metric.
    """

    of_pixels = False
    of_code = True

    def __init__(self, tap: Tap, grid: Sequence[int], block: int | None = None, at: str | None = None):
        super().__init__()
        self.tap, self.grid, self.block, self.at = tap, tuple(grid), block, at

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.tap.name

    @classmethod
    def validate(cls, spec: LatentSpec, arguments: Arguments) -> None:
        if len(spec.grid) != 2:
            raise ValueError(
                f"it compares places of a map, and tokens on a grid of {list(spec.grid)} have none; take a tokenizer"
                " whose code is a map"
            )

    def forward(self, images: Tensor, rebuilt: Rebuilt) -> dict[str, Tensor]:
        (term,) = self.terms
        made = rebuilt.code.z if self.head is None else rebuilt.head_outputs[term]
        return self.compared(made, self.tap(images, self.grid_of(made)), rebuilt.features.get("kept"))

    def grid_of(self, made: Tensor) -> tuple[int, ...]:
        """The grid that tokens [B, N, C] are on: `grid`, or of images that are smaller, one as much smaller."""
        shrunk = math.sqrt(made.shape[1] / math.prod(self.grid))
        return tuple(round(side * shrunk) for side in self.grid)

    @abstractmethod
    def compared(self, made: Tensor, aims: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """The term, of what was made [B, N, C] and the teacher's features [B, N, width].

        `kept` [B, N] bool says which places the tokenizer's encoder was shown.
        """
