"""What makes pictures of the rows that a tokenizer without pixels of its own rebuilds."""

import math

from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.nn.patch_heads import LinearHead, patch_grid
from pipeline.nn.transformer_sizes import check_heads
from pipeline.nn.vision_transformer import LatentDecoder


class PixelDecoder(LatentDecoder):
    """Rows [B, n, inputs] of at most `tokens` to images [B, channels, h, w]: TiTok's decoder and a linear head.

    `arguments` are those of the tokenizer: `image_size`, `image_channels` and `pixel_width`, `pixel_depth`,
    `pixel_heads` and `pixel_patch`.
    """

    def __init__(self, inputs: int, tokens: int, arguments: Arguments):
        grid, width = patch_grid(arguments.image_size, arguments.pixel_patch), arguments.pixel_width
        super().__init__(inputs, math.prod(grid), tokens, width, arguments.pixel_depth, arguments.pixel_heads)
        self.grid, self.output = grid, LinearHead(width, arguments.pixel_patch, arguments.image_channels)

    @staticmethod
    def validate(kind: str, arguments: Arguments) -> None:
        """ValueError where the arguments of a tokenizer of this kind do not fit together."""
        check_heads(kind, arguments.pixel_width, arguments.pixel_heads)
        patch_grid(arguments.image_size, arguments.pixel_patch)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.output.last_layer

    def forward(self, rows: Tensor) -> Tensor:
        return self.output(super().forward(rows), self.grid)
