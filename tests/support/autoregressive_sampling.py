"""What the cases of autoregressive generators share: greedy generation, and the logits it chose from."""

from unittest.mock import patch

import generating
import torch
from torch import Tensor, nn

from pipeline.code import Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.objectives.base import Objective
from pipeline.samplers.choice import Choice
from pipeline.samplers.guidance import Guidance


def spec_of(network: nn.Module) -> LatentSpec:
    config = network.config
    return LatentSpec(tuple(config.grid), dim=1, vocab=config.vocab, codebooks=config.codebooks)


def greedy(network: nn.Module, objective: Objective, condition: Condition, guidance: Guidance) -> tuple[Tensor, Tensor]:
    """Ids [B, N] of one codebook, and the guided logits [B, N, vocab] they are the likeliest of."""
    seen, spec, choose = [], spec_of(network), Choice.__call__

    def watched(choice: Choice, logits: Tensor, uniform: Tensor) -> Tensor:
        seen.append(logits)
        return choose(choice, logits, uniform)

    draws = ImageDraws.from_seeds(list(range(len(condition))))
    with patch.object(Choice, "__call__", watched):
        code = generating.sample(objective, network, condition, spec, draws, spec.tokens, guidance, temperature=0.0)
    return code.ids, torch.cat(seen, dim=1)
