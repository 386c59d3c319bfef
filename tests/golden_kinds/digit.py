"""DiGIT's first generator: ids of clusters, logits of all places, the end counted, and the smoothed loss."""

import torch
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.nn.prefixed_transformer import cross_entropy
from pipeline.published.digit import END, SPECIAL
from pipeline.published.digit_pixels import clusters

MATCHES = "image_generation_stage1.model.STTransformerLanguageModel"
SMOOTHING = 0.1


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    heads = case.meta["constructor"]["heads"]
    ids = clusters(case.state).nearest(case.inputs["features"])
    tokens = case.meta["constructor"]["tokens"]
    square = next(side**2 for side in range(1, tokens + 1) if side**2 >= tokens)
    network = bare(case.imported("digit", heads=heads, tokens=square)["network"])
    logits = network.head.outputs[0](network.states(ids[..., None]))
    return {"semantic_ids": ids + SPECIAL} | after_end(logits, ids)


def after_end(logits: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """Logits [B, N + 1, vocab + special], the special ones first, and the losses of ids [B, N] and the end."""
    logits = torch.cat([logits[..., -SPECIAL:], logits[..., :-SPECIAL]], dim=-1)
    targets = torch.cat([ids + SPECIAL, torch.full_like(ids[:, :1], END)], dim=1)
    losses = {"loss": cross_entropy(logits, targets, SMOOTHING), "nll": cross_entropy(logits, targets, 0.0)}
    return {"logits": logits, "targets": targets} | losses
