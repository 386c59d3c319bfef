"""DiGIT's second generator: pixel ids after those of clusters, in one pass and one by one."""

import torch
from torch import Tensor

from golden_kinds import Case
from golden_kinds.digit import after_end
from pipeline.published.digit import END, SPECIAL
from pipeline.published.digit_pixels import clusters, translator

MATCHES = "image_generation_stage2.model.ST2VTTransformerLanguageModel"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated, written = case.meta["constructor"], case.inputs["vq_codes"]
    sizes = stated["tokens"], stated["vq_tokens"] + 1  # the end follows the last
    model = translator(case.state, *sizes, heads=stated["heads"])
    ids = clusters(case.state).nearest(case.inputs["features"])
    offset, end = SPECIAL + model.vocab + SPECIAL, torch.full_like(written[:, :1], END)
    found = {
        "semantic_ids": ids + offset,
        "sequence": torch.cat([ids + offset, end, written + SPECIAL], dim=1),
        "logits_incremental": one_by_one(model, case.inputs["semantic_codes"] - SPECIAL, written),
    }
    return found | after_end(model(ids, written), written)


def one_by_one(model: torch.nn.Module, prefix: Tensor, written: Tensor) -> Tensor:
    """Logits of every place, with the caches of sampling, the special ids first."""
    caches, h, logits = model.memory(), model.embed_prefix(prefix), []
    for place in range(written.shape[1] + 1):
        logits.append(model.next_logits(caches, h))
        if place < written.shape[1]:
            h = model.embed(written[:, place : place + 1], place + 1)
    logits = torch.stack(logits, dim=1)
    return torch.cat([logits[..., -SPECIAL:], logits[..., :-SPECIAL]], dim=-1)
