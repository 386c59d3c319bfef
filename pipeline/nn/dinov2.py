"""DINOv2's vision transformer: class token and patches of an image, through blocks with LayerScale."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.blocks import EPSILON, SelfAttention
from pipeline.nn.convolution import Tower
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.lora import Adapted

ADAPTED: dict[Adapted, tuple[str, ...]] = {  # linear layers of a block, by what an adapter changes
    "attention": ("qkv", "proj"),
    "feed_forward": ("up", "down"),
    "all": ("qkv", "proj", "up", "down"),
}
Kept = tuple[Tensor, Tensor]  # whose attention and whose feed-forward branch is kept, each [B, 1, 1] bool


class ScaledBlock(nn.Module):
    """h = x + scale1 attention(norm1(x)), then h + scale2 down(gelu(up(norm2(h)))), for x [B, N, width].

    The scales [width] are LayerScale (Touvron et al., arXiv:2103.17239); the feed-forward layer is four times as wide,
    its GELU exact. In training each branch of an image is left out with probability `drop_path` (stochastic depth,
    Huang et al., arXiv:1603.09382).
    """

    def __init__(self, width: int, heads: int, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attention = SelfAttention(width, heads)
        self.scale1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.scale2 = nn.Parameter(torch.ones(width))

    def draw_kept_branches(self, draws: Draws | None, name: str) -> Kept | None:
        """Drawn outside `forward`, which so stays a function of tensors; None keeps all."""
        if draws is None or not self.drop_path:
            return None
        first, second = (
            draws.keep_mask(f"{name}.{part}", (1, 1), self.drop_path) for part in ("attention", "feed_forward")
        )
        return first, second

    def forward(self, hidden_states: Tensor, kept: Kept | None = None) -> Tensor:
        first, second = kept or (None, None)
        branch = self.scale1 * self.attention(self.norm1(hidden_states))
        h = hidden_states + apply_dropout(branch, first, self.drop_path)
        branch = self.scale2 * self.down(F.gelu(self.up(self.norm2(h))))
        return h + apply_dropout(branch, second, self.drop_path)


class Dinov2(Tower, EntryPoints):
    """The transformer of Oquab et al., arXiv:2304.07193, without register tokens, for images of `patches` patches.

    `embed_patches`, `add_positions` and `run_blocks`, one after the other, are the published model. Without a
    `patch_size` there is no patch embedding. `drop_path` is the probability at the last block; it rises linearly from 0
    at the first. New weights: truncated normal of std 0.02, biases 0, scales 1.
    """

    entry_points = ("add_positions",)

    def __init__(
        self,
        patches: int,
        width: int,
        depth: int,
        heads: int,
        patch_size: int | None = None,
        drop_path: float = 0.0,
        channels: int = 3,
    ):
        super().__init__()
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size) if patch_size else None
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.positions = nn.Parameter(torch.empty(1 + patches, width))  # the class token's is the first
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(ScaledBlock(width, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        for learned in (self.class_token, self.positions):
            nn.init.trunc_normal_(learned, std=0.02)

    def adapted_layers(self, layers: Adapted) -> list[str]:
        """The names of the linear layers that an adapter of `layers` changes."""
        children = ((path, name) for path, part in self.named_modules() for name, _ in part.named_children())
        return [f"{path}.{name}" for path, name in children if name in ADAPTED[layers]]

    def embed_patches(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W] to one vector per patch, row by row, [B, patches, width]."""
        return self.patch_embedding(images).flatten(2).transpose(1, 2)

    def add_positions(self, patches: Tensor) -> Tensor:
        """The class token, then the first few patches [B, n, width], with their positions: [B, 1 + n, width]."""
        class_token = self.class_token.expand(len(patches), 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.positions[: 1 + patches.shape[1]]

    def run_blocks(self, h: Tensor, draws: Draws | None = None) -> Tensor:
        """A sequence [B, N, width] after all blocks and the last norm; with draws, branches are left out."""
        for i, block in enumerate(self.blocks):
            h = self.run(block, h, block.draw_kept_branches(draws, f"blocks.{i}"))
        return self.norm(h)
