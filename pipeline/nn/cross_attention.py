"""Attention whose queries, keys and values may each be of another sequence."""

from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.nn.blocks import AttentionProcessor


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention from a sequence of `width` channels to one of `inputs` channels, by default as many."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # the three may be of different sequences

    def __init__(self, width: int, heads: int, inputs: int | None = None):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key, self.value = (nn.Linear(inputs or width, width) for _ in range(2))
        self.proj = nn.Linear(width, width)
        self.set_processor(AttentionProcessor())

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Queries [B, N, width], keys and values [B, M, inputs] to [B, N, width]; see `AttentionProcessor`."""
        projected = self.query(queries), self.key(keys), self.value(values)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        return self.proj(self.processor(q, k, v, causal, mask).transpose(1, 2).flatten(2))
