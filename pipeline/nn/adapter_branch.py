"""A branch of an encoder whose quantisers each have a transformer of their own, and a head that reads one's codes."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.convolution import Tower, group_norm, match_memory_format
from pipeline.nn.embeddings import learned_vectors
from pipeline.nn.vision_transformer import PreNormBlock


class PlaceTransformer(Tower):
    """Tokens [B, N, width], each with a learned position, between two layer norms through pre-norm blocks."""

    def __init__(self, places: int, width: int, depth: int, heads: int):
        super().__init__()
        self.positions = learned_vectors(places, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PreNormBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm_in(tokens + self.positions)
        for block in self.blocks:
            h = self.run(block, h)
        return self.norm_out(h)


class AdapterBranch(nn.Module):
    """A map [B, width, h, w] of the trunk to what one quantiser reads, [B, outputs, h, w].

    A transformer over the places, then group norm, SiLU, a 3x3 convolution to `channels` and a 1x1 convolution, as in
    FQGAN (Bai et al., arXiv:2411.16681).
    """

    def __init__(self, places: int, width: int, depth: int, heads: int, groups: int, channels: int, outputs: int):
        super().__init__()
        self.adapter = PlaceTransformer(places, width, depth, heads)
        self.conv_norm_out = group_norm(width, groups)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.quant_conv(self.adapted(maps))

    def adapted(self, maps: Tensor) -> Tensor:
        """[B, channels, h, w], what the last convolution reads."""
        h = self.adapter(maps.flatten(2).mT).mT.unflatten(2, maps.shape[2:])
        return self.conv_out(F.silu(self.conv_norm_out(match_memory_format(h, self.conv_out.weight))))


class PredictorShape(NamedTuple):
    """Sizes of a `ClassPredictor` that its teacher does not give."""

    depth: int
    heads: int


class ClassPredictor(nn.Module):
    """Codes [B, N, inputs] on a grid to the class token [B, width] that a vision model may have of their image.

    Two linear layers with a ReLU between them, a learned token before the tokens, and a transformer.
    """

    def __init__(self, inputs: int, places: int, width: int, shape: PredictorShape):
        super().__init__()
        self.up = nn.Linear(inputs, width)
        self.down = nn.Linear(width, width)
        self.class_token = learned_vectors(1, width)
        self.transformer = PlaceTransformer(1 + places, width, *shape)

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokens(codes)[:, 0]

    def tokens(self, codes: Tensor) -> Tensor:
        """[B, 1 + N, width], the class token first."""
        h = self.down(F.relu(self.up(codes)))
        return self.transformer(torch.cat([self.class_token.expand(len(h), 1, -1), h], dim=1))


class BranchPredictor(nn.Module):
    """The predictor as the head of a loss: it reads the channels of z [B, N, C] that quantiser `branch` of some has."""

    def __init__(self, predictor: ClassPredictor, branch: int, branches: int):
        super().__init__()
        self.predictor, self.branch, self.branches = predictor, branch, branches

    def forward(
        self, z: Tensor, perturbed: Tensor | None, features: Mapping[str, Tensor], draws: Draws | None
    ) -> Tensor:
        """The class token [B, width] of the code z itself, whatever the decoder reads."""
        return self.predictor(z.chunk(self.branches, dim=-1)[self.branch])
