"""What every reconstruction loss promises."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pipeline.tokenizers.base import Rebuilt


class Loss(nn.Module, ABC):
    """Terms of a tokenizer's loss, unweighted means per element; the recipe holds the weights."""

    of_pixels: bool = True  # it looks at rebuilt.images alone, so its gradient can be taken at the image
    reads: tuple[str, ...] = ()  # names of rebuilt.features that it needs

    @classmethod
    @abstractmethod
    def terms(cls, **arguments) -> tuple[str, ...]:
        """Names of the terms, known without building."""

    @abstractmethod
    def forward(self, images: Tensor, rebuilt: Rebuilt) -> dict[str, Tensor]:
        """images [B, 3, H, W] in [-1, 1] and what the tokenizer made of them."""
