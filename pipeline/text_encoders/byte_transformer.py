"""A small transformer over bytes, trained on a recipe's own captions: the choice that needs nothing else."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Generator, Tensor, nn

from pipeline.code import Condition, TextSpec
from pipeline.components import Arguments
from pipeline.draws import mix
from pipeline.nn.attention import attention
from pipeline.nn.devices import has_fused_updates
from pipeline.nn.execution_device import execution_device
from pipeline.ranges import Count, InnerFraction, Layers, Positive
from pipeline.text_encoders.base import TextEncoder, check_layers, finish
from pipeline.validation import SettingError

START, MASK, BYTES = 256, 257, 258  # ids after those of the bytes, and how many ids there are


class Block(nn.Module):
    """x + attention(norm(x)), then the same with linear, GELU, linear; places without a token are seen by none."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, width] with the mask [B, T] to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(attention(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ByteTransformer(TextEncoder):
    """A start token and the first `tokens - 1` bytes of a caption's UTF-8 through pre-norm blocks.

    It is trained on the training captions: of every caption a fraction `masked` of the bytes is replaced by a mask, and
    it predicts what they were (Devlin et al., arXiv:1810.04805, section 3.1, without its other tasks), for `steps`
    steps of `batch` captions by Adam at a `rate` that rises over a tenth of them and falls to zero. `layers` are those
    whose states are features, counted in blocks: 0 is what the first one reads, -1 the last, after the last norm.
    The pooled vector is the mean of that one over the tokens.
    """

    given_weights = False

    @register_to_config
    def __init__(
        self,
        tokens: Count = 64,
        width: Count = 128,
        depth: Count = 3,
        heads: Count = 4,
        layers: Layers = [-1],  # noqa: B006
        steps: Count = 1000,
        batch: Count = 64,
        rate: Positive = 1e-3,
        masked: InnerFraction = 0.3,
    ):
        super().__init__()
        self.geometry(Arguments.from_config(self))
        self.embedding, self.positions = nn.Embedding(BYTES, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, std=0.02)

    @classmethod
    def geometry(cls, arguments: Arguments) -> TextSpec:
        check_layers(arguments.layers, arguments.depth)
        if arguments.width % arguments.heads:
            raise SettingError("width", f" is {arguments.width}; give a multiple of heads, {arguments.heads}")
        if arguments.tokens < 2:
            raise SettingError("tokens", " is 1, which the start token takes; give 2 or more")
        return TextSpec(arguments.tokens, arguments.width, len(arguments.layers), arguments.width)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        device = execution_device(self)
        ids, mask = (tensor.to(device) for tensor in to_bytes(prompts, self.config.tokens))
        states = self.states(ids, mask)
        kept = mask[..., None].to(states[-1].dtype)
        pooled = (states[-1] * kept).sum(1) / kept.sum(1)
        chosen = check_layers(self.config.layers, self.config.depth)
        return finish([states[layer] for layer in chosen], mask, pooled)

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Of ids [B, T] with their mask, what the first block reads and the output of every one, [B, T, width]."""
        h = self.embedding(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        states = [h]
        for block in self.blocks:
            states.append(h := block(h, mask))
        states[-1] = self.norm(h)
        return states

    def fit(self, captions: Sequence[str], seed: int) -> str:
        """As in the base; ValueError where no caption has a byte. The encoder is left in evaluation mode."""
        config, captions = self.config, sorted({caption for caption in captions if caption})
        if not captions:
            raise ValueError("there is no caption to train a byte_transformer on; all are empty")
        randomness = Generator().manual_seed(mix(seed, "masked bytes"))
        ids, mask = to_bytes(captions, config.tokens)
        fused = has_fused_updates(self.device) or None
        optimizer = torch.optim.AdamW(self.parameters(), lr=config.rate, weight_decay=0.01, fused=fused)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, config.steps))
        losses: list[float] = []
        self.requires_grad_(True).train()
        for _ in range(config.steps):
            rows = torch.randint(len(captions), (config.batch,), generator=randomness)
            longest = int(mask[rows].sum(1).max())
            loss = self._loss(ids[rows, :longest], mask[rows, :longest], randomness)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            rates.step()
            losses.append(loss.item())
        self.requires_grad_(False).eval()
        last = losses[-max(1, config.steps // 10) :]
        return (
            f"byte_transformer: trained for {config.steps:,} steps on {len(captions):,} captions of this recipe, by"
            f" predicting masked bytes; its loss fell from {losses[0]:.2f} to {sum(last) / len(last):.2f} nats per byte"
        )

    def _loss(self, ids: Tensor, mask: Tensor, randomness: Generator) -> Tensor:
        """Mean cross entropy of the bytes that are hidden, one at least of every caption."""
        scores = torch.rand(ids.shape, generator=randomness).masked_fill(~mask | (ids == START), 2)
        hidden = (scores < self.config.masked) | (scores == scores.amin(1, keepdim=True)) & (scores < 2)
        seen, hidden, mask, ids = (
            tensor.to(self.device) for tensor in (ids.masked_fill(hidden, MASK), hidden, mask, ids)
        )
        return F.cross_entropy(self.head(self.states(seen, mask)[-1][hidden]).float(), ids[hidden])


def share_of_rate(step: int, steps: int) -> float:
    """The learning rate at a step, of the largest: up over a tenth of all steps, then down to zero."""
    rise = max(1, steps // 10)
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def to_bytes(prompts: Sequence[str], tokens: int) -> tuple[Tensor, Tensor]:
    """Ids [B, tokens] of a start token and the bytes of each prompt as UTF-8, and where there are such, [B, tokens]."""
    ids, mask = torch.zeros(len(prompts), tokens, dtype=torch.int64), torch.zeros(len(prompts), tokens, dtype=bool)
    for row, prompt in enumerate(prompts):
        known = [START, *prompt.encode("utf-8", "replace")[: tokens - 1]]
        ids[row, : len(known)], mask[row, : len(known)] = torch.tensor(known), True
    return ids, mask
