"""A small causal transformer that predicts the code vector of the next token, trained beside a tokenizer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.causal import EVERYTHING, BlockShape, CausalBlock
from pipeline.nn.convolution import Tower
from pipeline.nn.dropout import apply_dropout

Choose = Callable[[Tensor, Tensor], Tensor]  # ids [...] of logits [..., vocab] and uniform numbers [...]
Size = tuple[int, int, int]  # width, depth, heads


class LatentPrior(Tower):
    """Code vectors of the first tokens, [B, N - 1, dim], to those that follow, each predicted at length one.

    Layer norm, GELU and learned positions. `dropout` is of the sequence, the attention weights and what each branch
    adds; ids are drawn by `choose`.
    """

    def __init__(self, dim: int, tokens: int, size: Size, dropout: float, choose: Choose):
        super().__init__()
        width, depth, heads = size
        self.dropout, self.choose = dropout, choose
        self.embedding = nn.Linear(dim, width)
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        rates = {"residual_dropout": dropout, "feed_forward_dropout": 0.0, "attention_dropout": dropout}
        shape = BlockShape(width, heads, "layer", 1e-5, "gelu", 4 * width, True, False, **rates)
        self.blocks = nn.ModuleList(CausalBlock(shape) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, draws: Draws | None = None, name: str = "prior") -> Tensor:
        """With draws dropout is on; `name` sets their names apart from those of other passes."""
        h = self.embedding(z) + self.positions[: z.shape[1]].to(z)
        if draws is not None and self.dropout:
            h = apply_dropout(h, draws.keep_mask(f"{name}.sequence", tuple(h.shape[1:]), self.dropout), self.dropout)
        for i, block in enumerate(self.blocks):
            masks = block.masks(draws, z.shape[1], f"{name}.block_{i}") if self.dropout else EVERYTHING
            h = self.run(block, h, None, masks)
        return F.normalize(self.head(self.norm_out(h)), dim=-1)

    def rounds(self, z: Tensor, rows: Tensor, draws: Draws | None, count: int, share: float) -> list[Tensor]:
        """Logits [B, N - 1, vocab] of the tokens after the first of z [B, N, dim], for each of `count` rounds.

        They are the products of the predictions with the `rows` [vocab, dim] of the codebook. The first round reads z.
        Before each later one, a `share` of the tokens but the first, the same in all rounds, become codes that are
        drawn from the logits of the round before (scheduled sampling, Bengio et al., arXiv:1506.03099). Without draws
        there is one round.
        """
        places, fed, found = z.shape[1] - 1, z, []
        for number in range(count if draws is not None else 1):
            if number:
                uniform = draws.uniform(f"prior.drawn_{number}", (places,)).to(z.device)
                drawn = F.embedding(self.choose(found[-1].detach(), uniform), rows).to(z)
                mixed = draws.uniform("prior.mixed", (places,)).to(z.device) < share
                fed = torch.cat([z[:, :1], torch.where(mixed[..., None], drawn, z[:, 1:])], dim=1)
            predictions = self(fed[:, :-1], draws if self.training else None, f"prior.round_{number}")
            found.append(predictions.float() @ rows.float().T)
        return found
