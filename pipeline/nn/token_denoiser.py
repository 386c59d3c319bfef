"""The head of a generator of continuous tokens: a small network that denoises one token, by the state of its place."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import EPSILON, ModulatedHead, modulate
from pipeline.nn.embeddings import TimeEmbedding


class ModulatedMLPBlock(nn.Module):
    """x + gate (linear, SiLU, linear of norm(x) (1 + scale) + shift); shift, scale and gate follow from a condition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x and condition, after its SiLU, [B, R, width]."""
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        h = self.down(F.silu(self.up(modulate(self.norm(x), shift, scale))))
        return torch.addcmul(x, gate, h)


class TokenDenoiser(nn.Module):
    """Noisy tokens [B, R, dim] at times [B, R], given states [B, R, state_width], to [B, R, outputs].

    The diffusion head of MAR (Li et al., arXiv:2406.11838, section 4.2): no token sees another. With gates and the last
    layer at zero, as at the start, it predicts zero.
    """

    def __init__(self, dim: int, outputs: int, state_width: int, width: int, depth: int):
        super().__init__()
        self.embedding = nn.Linear(dim, width)
        self.time_embedding = TimeEmbedding(width)
        self.state_embedding = nn.Linear(state_width, width)
        self.blocks = nn.ModuleList(ModulatedMLPBlock(width) for _ in range(depth))
        self.output = ModulatedHead(width, outputs, "layer")
        self.initialise()

    def forward(self, noisy: Tensor, time: Tensor, states: Tensor) -> Tensor:
        """`time` is what the sinusoid sees, in float32."""
        embedded = self.time_embedding(time.flatten()).unflatten(0, time.shape)
        condition = F.silu(embedded + self.state_embedding(states))
        h = self.embedding(noisy)
        for block in self.blocks:
            h = block(h, condition)
        return self.output(h, condition)

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier linear layers, a normal time embedding, modulations and the last layer at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embedding.up, self.time_embedding.down):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.output.modulation, self.output.linear):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
