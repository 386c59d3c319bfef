"""Encoding and decoding in less memory: image by image, and tile by tile where that is defined."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.code import Condition
from pipeline.nn.convolution import run_tiled


class Slicing:
    """diffusers' switch of work that is done image by image."""

    use_slicing: bool = False

    def enable_slicing(self) -> None:
        """Encode and decode one image at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode all images of a batch at once."""
        self.use_slicing = False


class MemorySaving(Slicing):
    """diffusers' switches of autoencoders. Slices give the images of the whole batch; tiles are an approximation.

    A class whose encoder and decoder are convolutional sets `use_tiling = False` and runs them through `by_tile`.
    """

    def enable_tiling(self) -> None:
        """Encode and decode large images by overlapping tiles; ValueError where every token sees the whole image."""
        if not hasattr(self, "use_tiling"):
            raise ValueError(
                f"a {type(self).__name__} is not convolutional: it computes on the whole image and has no tiles; call"
                " enable_slicing() for less memory"
            )
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Encode and decode whole images."""
        if hasattr(self, "use_tiling"):
            self.use_tiling = False

    def by_image(
        self, function: Callable[[Tensor, Condition | None], Tensor], batch: Tensor, condition: Condition | None
    ) -> Tensor:
        """`function(batch, condition)`, row by row while slicing is enabled."""
        if not self.use_slicing or len(batch) == 1:
            return function(batch, condition)
        conditions = [None if condition is None else condition[i : i + 1] for i in range(len(batch))]
        return torch.cat([function(row, condition_of_row) for row, condition_of_row in zip(batch.split(1), conditions)])

    def by_tile(
        self, function: Callable[[Tensor], Tensor], maps: Tensor, tile: tuple[int, int], unit: int = 1
    ) -> Tensor:
        """`function(maps)`, tile by tile while tiling is enabled; see `tiled`."""
        return run_tiled(function, maps, tile, unit) if self.use_tiling else function(maps)


class DecodingSwitches(Slicing):
    """diffusers' switches of pipelines, for one whose `tokenizer` decodes."""

    def enable_vae_slicing(self) -> None:
        """As `enable_slicing`, under the name that diffusers' older pipelines have."""
        self.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """As `disable_slicing`."""
        self.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large images by tiles; ValueError when the tokenizer is not convolutional."""
        self.tokenizer.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode whole images."""
        self.tokenizer.disable_tiling()
