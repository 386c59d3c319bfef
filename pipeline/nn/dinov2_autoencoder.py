"""DINOv2's transformer as the encoder of an image to latent tokens, and as the decoder of these to an image."""

import torch
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.dinov2 import Dinov2
from pipeline.nn.patch_heads import Grid, assemble_patches


class LatentTransformer(nn.Module):
    """`vit` on the sequence [class token | patches of an image | latents]; all but `vit` is newly initialised.

    With `tokens` the latents are a row, with learned positions of its own. Without, there is one per patch, at the
    position of that patch, and two vectors, `levels`, mark the two kinds. As in lxa9867/ImageFolder.
    """

    def __init__(self, vit: Dinov2, tokens: int | None):
        super().__init__()
        self.vit = vit
        count, self.width = vit.positions.shape
        self.patches = count - 1
        self.tokens = self.patches if tokens is None else tokens
        row = tokens is not None
        self.positions = nn.Parameter(torch.empty(tokens, self.width)) if row else None
        self.levels = None if row else nn.Parameter(torch.empty(2, self.width))
        nn.init.trunc_normal_(self.positions if row else self.levels, std=0.02 if row else (3 * self.width) ** -0.5)

    def join_latents(self, patches: Tensor, latents: Tensor, first: int) -> Tensor:
        """patches [B, patches, width] and latents [B, n, width] in one sequence, with their positions.

        Latents on the grid of the patches come after a class token of their own, which `first` = 1 leaves out.
        """
        image = self.vit.add_positions(patches)
        if self.levels is None:
            return torch.cat([image, latents + self.positions[: latents.shape[1]]], dim=1)
        return torch.cat([image + self.levels[0], self.vit.add_positions(latents)[:, first:] + self.levels[1]], dim=1)


class Dinov2Encoder(LatentTransformer):
    """Images [B, channels, H, W] to the states of learned latent tokens, [B, tokens, outputs].

    `projection` maps states of the transformer, of any token, to the bottleneck's inputs.
    """

    def __init__(self, vit: Dinov2, tokens: int | None, outputs: int):
        super().__init__(vit, tokens)
        self.latents = nn.Parameter(1e-6 * torch.randn(self.tokens, self.width))
        self.projection = nn.Linear(self.width, outputs)

    def forward(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        latents = self.latents.expand(len(images), -1, -1)
        h = self.vit.run_blocks(self.join_latents(self.vit.embed_patches(images), latents, first=1), draws)
        return self.projection(h[:, -self.tokens :])


class Dinov2Decoder(LatentTransformer):
    """Latents [B, tokens, inputs] to images [B, channels, H, W] of a `grid` of patches.

    Every patch begins as the same mask token. The class token comes twice where latents lie on the grid, as the public
    implementation has it.
    """

    def __init__(self, vit: Dinov2, tokens: int | None, inputs: int, patch_size: int, grid: Grid, channels: int = 3):
        super().__init__(vit, tokens)
        self.patch_size, self.grid = patch_size, grid
        self.embedding = nn.Linear(inputs, self.width)
        self.mask_token = nn.Parameter(1e-6 * torch.randn(1, self.width))
        self.pixels = nn.Linear(self.width, channels * patch_size**2)  # row in the patch, column, channel

    def forward(self, z: Tensor, draws: Draws | None = None) -> Tensor:
        masks = self.mask_token.expand(len(z), self.patches, -1)
        h = self.vit.run_blocks(self.join_latents(masks, self.embedding(z), first=0), draws)
        return assemble_patches(self.pixels(h[:, 1 : 1 + self.patches]), self.patch_size, self.grid)
