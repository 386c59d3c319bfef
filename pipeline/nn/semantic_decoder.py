"""The transformer that makes a vision model's features of the semantic half of a code."""

import torch
from torch import Tensor, nn

from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import learned_vectors
from pipeline.nn.vision_transformer import PreNormBlock, initialise

EPSILON = 1e-6  # of every norm


def tanh_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, tanh, linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


class SemanticDecoder(Tower):
    """z [B, N, inputs] of `places` positions to features [B, N, outputs] at the same positions.

    A class token precedes them, and every member has a learned position; pre-norm blocks, a norm of the positions'
    states, and `tanh_layers`. TokenFlow (Qu et al., arXiv:2412.03069), there without biases of keys, which change
    nothing.
    """

    def __init__(self, inputs: int, places: int, width: int, depth: int, heads: int, outputs: int):
        super().__init__()
        self.embedding = nn.Linear(inputs, width)
        self.class_token = learned_vectors(1, width)
        self.positions = learned_vectors(1 + places, width)  # the class token's is the first
        self.blocks = nn.ModuleList(PreNormBlock(width, heads, epsilon=EPSILON) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = tanh_layers(width, width, outputs)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        h = torch.cat([self.class_token.expand(len(z), 1, -1), self.embedding(z)], dim=1) + self.positions
        for block in self.blocks:
            h = self.run(block, h)
        return self.head(self.norm(h[:, 1:]))
