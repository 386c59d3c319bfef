"""Vision transformers that carry latent tokens beside the image's: from an image to a sequence of tokens, and back."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import SelfAttention
from pipeline.nn.convolution import Tower


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then the same with linear, exact GELU, linear: [B, N, width].

    Between the two there are `hidden` channels, four times the width by default.
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None, epsilon: float = 1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.up = nn.Linear(width, hidden or 4 * width)
        self.down = nn.Linear(hidden or 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Trunk(Tower):
    """The sequence [class token | patches of the image | latent tokens] through pre-norm blocks.

    Every member has a learned position. Yu et al., arXiv:2406.07550, in the form of bytedance/1d-tokenizer.
    """

    def __init__(self, patches: int, tokens: int, width: int, depth: int, heads: int):
        super().__init__()
        self.class_token = learned_vectors(1, width)
        self.place_positions = learned_vectors(1 + patches, width)  # the class token's is the first
        self.token_positions = learned_vectors(tokens, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PreNormBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def mix(self, patches: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """patches [B, P, width] and the first few latents [B, n, width] after all blocks, before the last norm."""
        class_token = self.class_token.expand(len(patches), 1, -1)
        image = torch.cat([class_token, patches], dim=1) + self.place_positions
        h = self.norm_in(torch.cat([image, latents + self.token_positions[: latents.shape[1]]], dim=1))
        for block in self.blocks:
            h = self.run(block, h)
        return h[:, 1 : image.shape[1]], h[:, image.shape[1] :]


class LatentEncoder(Trunk):
    """Images [B, channels, H, W], of so many `patches`, to the states of `tokens` learned tokens, [B, tokens, outputs].

    With `interleaved` the latents [tokens, width] in memory are read as [width, tokens] before the last projection, so
    that every output mixes a part of the channels of all tokens; some released weights were trained so.
    """

    def __init__(
        self,
        patches: int,
        patch_size: int,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        outputs: int,
        interleaved: bool = False,
        channels: int = 3,
    ):
        super().__init__(patches, tokens, width, depth, heads)
        self.interleaved = interleaved
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.tokens = learned_vectors(tokens, width)
        self.projection = nn.Linear(width, outputs)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        _, latents = self.mix(patches, self.tokens.expand(len(images), -1, -1))
        latents = self.norm_out(latents)
        if self.interleaved:
            latents = latents.flatten(1).unflatten(1, (latents.shape[2], latents.shape[1])).transpose(1, 2)
        return self.projection(latents)


class LatentDecoder(Trunk):
    """Latents [B, tokens, inputs] to the states of the image's patches, [B, patches, width], row by row.

    Every patch begins as the same mask token, and differs by its position.
    """

    def __init__(self, inputs: int, patches: int, tokens: int, width: int, depth: int, heads: int):
        super().__init__(patches, tokens, width, depth, heads)
        self.embedding = nn.Linear(inputs, width)
        self.mask_token = learned_vectors(1, width)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        masks = self.mask_token.expand(len(z), len(self.place_positions) - 1, -1)
        patches, _ = self.mix(masks, self.embedding(z))
        return self.norm_out(patches)


def image_tokens(sequence: Tensor, count: int) -> Tensor:
    """The image's patches of a sequence [class token | patches | latent tokens], [B, count, width]; of fewer, all."""
    return sequence[:, 1 : 1 + count] if sequence.shape[1] > count else sequence


def learned_vectors(count: int, width: int) -> nn.Parameter:
    """`count` learned vectors [count, width], normal with a standard deviation of width^-0.5."""
    return nn.Parameter(width**-0.5 * torch.randn(count, width))


def initialise(module: nn.Module) -> None:
    """As published: truncated normal matrices and kernels, Xavier queries, keys and values, biases at zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, SelfAttention):
            nn.init.xavier_uniform_(layer.qkv.weight)
