"""Blocks in which a code's tokens and a caption's places attend to each other, each with weights of its own."""

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.nn.blocks import EPSILON, AttentionProcessor, GELUFeedForward, ModulatedBlock, modulate
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import LabelEmbedding, sinusoid
from pipeline.nn.text import Caption


class JointAttention(nn.Module, AttentionModuleMixin):
    """Attention of tokens [B, N, width] and places of captions [B, T, width] to all of both.

    In the `last` block nothing reads the captions any more, and they are not returned.
    """

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # one projection makes all three already

    def __init__(self, width: int, heads: int, last: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.text_qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.text_proj = None if last else nn.Linear(width, width)
        self.set_processor(AttentionProcessor())

    def forward(self, x: Tensor, text: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """`keys` [B, 1, 1, N + T] bool says which tokens and places are seen."""
        qkv = torch.cat([self.qkv(x), self.text_qkv(text)], dim=1).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N + T, D]
        mixed = self.processor(q, k, v, mask=keys).transpose(1, 2).flatten(2)
        of_tokens, of_text = mixed.split([x.shape[1], text.shape[1]], dim=1)
        return self.proj(of_tokens), None if self.text_proj is None else self.text_proj(of_text)


class JointBlock(nn.Module):
    """Two streams, whose norms and branches are modulated by one vector, and which meet in the attention.

    Stable Diffusion 3 (Esser et al., arXiv:2403.03206, section 4), without norms of queries and keys. The `last` block
    has no text stream behind its attention.
    """

    def __init__(self, width: int, heads: int, ratio: float, last: bool):
        super().__init__()
        self.last = last
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPSILON, elementwise_affine=False) for _ in range(2))
        self.attention = JointAttention(width, heads, last)
        self.feed_forward = GELUFeedForward(width, ratio)
        self.modulation = nn.Linear(width, 6 * width)
        self.text_norm1, self.text_norm2 = (nn.LayerNorm(width, EPSILON, elementwise_affine=False) for _ in range(2))
        self.text_feed_forward = None if last else GELUFeedForward(width, ratio)
        self.text_modulation = nn.Linear(width, (2 if last else 6) * width)

    def forward(
        self, hidden_states: Tensor, text: Tensor, condition: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [B, N, width] and text [B, T, width] to the same; condition [B, width] after its SiLU."""
        shift, scale, gate, *feed = self.modulation(condition)[:, None].chunk(6, dim=-1)
        text_shift, text_scale, *rest = self.text_modulation(condition)[:, None].chunk(2 if self.last else 6, dim=-1)
        x = modulate(self.norm1(hidden_states), shift, scale)
        mixed, mixed_text = self.attention(x, modulate(self.text_norm1(text), text_shift, text_scale), keys)
        h = torch.addcmul(hidden_states, gate, mixed)
        h = torch.addcmul(h, feed[2], self.feed_forward(modulate(self.norm2(h), *feed[:2])))
        if self.last:
            return h, None
        text = torch.addcmul(text, rest[0], mixed_text)
        return h, torch.addcmul(text, rest[3], self.text_feed_forward(modulate(self.text_norm2(text), *rest[1:3])))


class ImageVector(nn.Module):
    """What modulates all blocks, [B, width]: the vector of the caption, and the embeddings of class and score.

    The score, of how good an image looks, enters as the sinusoid of 100 times itself with periods up to `period`; with
    `score_width` 0 there is none. The table of classes is there where there are classes, or nothing else.
    """

    def __init__(self, width: int, num_classes: int, score_width: int, period: float, caption: bool):
        super().__init__()
        self.score_width, self.period = score_width, period
        self.label_embedding = LabelEmbedding(num_classes, width) if num_classes or not caption else None
        self.score_embedding = nn.Linear(score_width, width, bias=False) if score_width else None

    def encode_score(self, scores: Tensor) -> Tensor:
        """Scores [B] as their sinusoid [B, score_width], cosines before sines."""
        return sinusoid(100 * scores, self.score_width, self.period)

    def forward(self, labels: Tensor, scores: Tensor, caption: Caption | None) -> Tensor:
        parts = [] if self.label_embedding is None else [self.label_embedding(labels)]
        if caption is not None and caption.vector is not None:
            parts.append(caption.vector)
        if self.score_embedding is not None:
            parts.append(self.score_embedding(self.encode_score(scores).to(self.score_embedding.weight.dtype)))
        return sum(parts[1:], parts[0])


class JointTrunk(Tower):
    """Tokens [B, N, width] through joint blocks, or modulated ones where no captions are read, and a modulated norm."""

    def __init__(self, width: int, heads: int, depth: int, ratio: float, captions: bool):
        super().__init__()
        plain = (width, heads, "layer", "gelu", ratio, False)
        self.blocks = nn.ModuleList(
            JointBlock(width, heads, ratio, i == depth - 1) if captions else ModulatedBlock(*plain)
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(width, EPSILON, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, hidden_states: Tensor, vector: Tensor, caption: Caption | None) -> Tensor:
        h, c = hidden_states, F.silu(vector)
        if caption is None:
            for block in self.blocks:
                h = self.run(block, h, c)
        else:
            text, keys = caption.places.to(h.dtype), F.pad(caption.mask, (h.shape[1], 0), value=True)[:, None, None]
            for block in self.blocks:
                h, text = self.run(block, h, text, c, keys)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        return modulate(self.norm(h), shift, scale)


@torch.no_grad()
def begin_joint(trunk: JointTrunk) -> None:
    """All modulations at zero, so that every block begins as the identity."""
    modulations = [trunk.modulation, *(block.modulation for block in trunk.blocks)]
    modulations += [block.text_modulation for block in trunk.blocks if isinstance(block, JointBlock)]
    for layer in modulations:
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
