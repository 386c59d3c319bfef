"""Vision transformers that carry latent tokens beside the image's: from an image to a sequence of tokens, and back."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.code import TextSpec
from pipeline.nn.blocks import SelfAttention
from pipeline.nn.caption_tokens import CaptionTokens
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import learned_vectors


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then the same with linear, exact GELU, linear: [B, N, width].

    Between the two there are `hidden` channels, four times the width by default. Without `qkv_bias` the projection to
    queries, keys and values has no bias.
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None, epsilon: float = 1e-5, qkv_bias: bool = True):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = SelfAttention(width, heads)
        if not qkv_bias:
            self.attention.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.up = nn.Linear(width, hidden or 4 * width)
        self.down = nn.Linear(hidden or 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Trunk(Tower):
    """The sequence [class token | patches of the image | latent tokens | caption] through pre-norm blocks.

    Every member has a learned position. Yu et al., arXiv:2406.07550, in the form of bytedance/1d-tokenizer; captions
    are read where `captions` gives their shape. The class token can be left out.
    """

    def __init__(
        self,
        patches: int,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        captions: TextSpec | None = None,
        class_token: bool = True,
    ):
        super().__init__()
        self.class_token = learned_vectors(1, width) if class_token else None
        self.place_positions = learned_vectors(class_token + patches, width)  # the class token's is the first
        self.token_positions = learned_vectors(tokens, width)
        self.captions = None if captions is None else CaptionTokens(captions, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PreNormBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    @property
    def patches(self) -> int:
        return len(self.place_positions) - (self.class_token is not None)

    def mix(self, patches: Tensor, latents: Tensor, text: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """patches [B, P, width] and the first few latents [B, n, width] after all blocks, before the last norm.

        `text` [B, T, channels] are the features of captions, where they are read.
        """
        image = patches
        if self.class_token is not None:
            image = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1)
        members = [image + self.place_positions, latents + self.token_positions[: latents.shape[1]]]
        if self.captions is not None:
            members.append(self.captions(text.to(patches.dtype)))
        h = self.norm_in(torch.cat(members, dim=1))
        for block in self.blocks:
            h = self.run(block, h)
        places = image.shape[1]
        return h[:, places - patches.shape[1] : places], h[:, places : places + latents.shape[1]]


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
        captions: TextSpec | None = None,
        class_token: bool = True,
    ):
        super().__init__(patches, tokens, width, depth, heads, captions, class_token)
        self.interleaved = interleaved
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.tokens = learned_vectors(tokens, width)
        self.projection = nn.Linear(width, outputs)
        initialise(self)

    def forward(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        _, latents = self.mix(patches, self.tokens.expand(len(images), -1, -1), text)
        latents = self.norm_out(latents)
        if self.interleaved:
            latents = latents.flatten(1).unflatten(1, (latents.shape[2], latents.shape[1])).transpose(1, 2)
        return self.projection(latents)


class LatentDecoder(Trunk):
    """Latents [B, tokens, inputs] to the states of the image's patches, [B, patches, width], row by row.

    Every patch begins as the same mask token, and differs by its position.
    """

    def __init__(
        self,
        inputs: int,
        patches: int,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        captions: TextSpec | None = None,
        class_token: bool = True,
    ):
        super().__init__(patches, tokens, width, depth, heads, captions, class_token)
        self.embedding = nn.Linear(inputs, width)
        self.mask_token = learned_vectors(1, width)
        initialise(self)

    def forward(self, z: Tensor, text: Tensor | None = None) -> Tensor:
        masks = self.mask_token.expand(len(z), self.patches, -1)
        patches, _ = self.mix(masks, self.embedding(z), text)
        return self.norm_out(patches)


def image_tokens(sequence: Tensor, count: int, first: int = 1) -> Tensor:
    """The image's patches of a sequence, by default after one class token, [B, count, width]; of fewer, all."""
    return sequence[:, first : first + count] if sequence.shape[1] > count else sequence


def initialise(module: nn.Module) -> None:
    """As published: truncated normal matrices and kernels, Xavier queries, keys and values, biases at zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, SelfAttention):
            nn.init.xavier_uniform_(layer.qkv.weight)
