"""A class token that is noised and denoised with a code: as rows of one state, and as a token of a transformer.

Representation entanglement for generation (REG), Wu et al., arXiv:2507.01467.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import EPSILON, ModulatedHead, Rotary


def count_token_rows(width: int, channels: int) -> int:
    """Rows of so many channels that a class token of `width` values takes; 0 for none."""
    return -(-width // channels)


def join_token(z: Tensor, token: Tensor | None) -> Tensor:
    """z [B, N, C] with token [B, D] below it: [B, N + rows, C], the last row filled up with zeros; z itself of None."""
    if token is None:
        return z
    channels = z.shape[2]
    return torch.cat([z, F.pad(token.to(z), (0, -token.shape[1] % channels)).unflatten(1, (-1, channels))], dim=1)


def split_token(state: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The inverse of `join_token`: z [B, N, C] and the token [B, width]."""
    tokens = state.shape[1] - count_token_rows(width, state.shape[2])
    return state[:, :tokens], state[:, tokens:].flatten(1)[:, :width]


class ClassTokenLayers(nn.Module):
    """A class token of `token` values as the first of a transformer's tokens, and back: REG (arXiv:2507.01467).

    A linear layer and a layer norm lead in; a linear layer of its own leads out, after the norm and the modulation that
    it shares with all tokens. Rotary positions do not turn it.
    """

    def __init__(self, token: int, width: int):
        super().__init__()
        self.embedding = nn.Linear(token, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.linear = nn.Linear(width, token)

    def forward(self, token: Tensor, h: Tensor, rotary: Rotary | None) -> tuple[Tensor, Rotary | None]:
        """token [B, D] before tokens h [B, N, width]: [B, N + 1, width], and rotary tables for so many."""
        h = torch.cat([self.norm(self.embedding(token))[:, None], h], dim=1)
        if rotary is None:
            return h, None
        cosines, sines = rotary
        return h, (F.pad(cosines, (0, 0, 1, 0), value=1.0), F.pad(sines, (0, 0, 1, 0)))

    def predict(self, h: Tensor, condition: Tensor, head: ModulatedHead) -> Tensor:
        """Of hidden states [B, N + 1, width] what is predicted of the class token, [B, D]."""
        return self.linear(head.modulate_norm(h[:, :1], condition))[:, 0]
