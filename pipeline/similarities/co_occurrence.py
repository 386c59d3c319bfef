"""Which codes two tokenizers give the same places of the same pictures."""

import torch
from torch import Tensor

from pipeline.code import LatentSpec, stack_ids
from pipeline.ranges import Count
from pipeline.similarities.base import CodePair, Similarity, check_count


class CoOccurrence(Similarity):
    """log P(old code | new code): how often the old tokenizer gives a place this id, where the new one gives that.

    Counted over all places of `pictures` training pictures, evenly spaced; for any two tokenizers whose codes have the
    same places. A new code that no picture has is as near to each of the rarest old codes, and to no other.
    """

    def __init__(self, pictures: Count = 10_000):
        super().__init__()
        self.pictures = pictures

    def check(self, old: LatentSpec, new: LatentSpec) -> None:
        for name in ("grid", "codebooks", "levels", "segments", "ends"):
            before, after = getattr(old, name), getattr(new, name)
            if before != after:
                raise ValueError(
                    f"co_occurrence compares codes at the same places, and {name} was {before} and is {after}; take"
                    " tokenizers of the same grid, or set kind=mean"
                )
        check_count(old, new)

    @torch.no_grad()
    def measure(self, pair: CodePair) -> list[list[Tensor]]:
        spec, old_vocab, old_codes = pair.new.spec, pair.old.spec.vocab, pair.old.spec.codes
        counts = torch.zeros(max(1, len(spec.segments)), spec.codebooks, spec.vocab * old_vocab)
        for ids in pair.ids(self.pictures):
            old, new = (spec.by_codebook(stack_ids(each).cpu().long()) for each in ids)
            for segment, (before, after) in enumerate(zip(old, new)):
                for k in range(spec.codebooks):
                    pairs = (after[..., k] * old_vocab + before[..., k]).flatten()
                    counts[segment, k].index_add_(0, pairs, torch.ones(len(pairs)))
        tables = counts.unflatten(-1, (spec.vocab, old_vocab))
        return [[log_share(table[: spec.codes, :old_codes]) for table in segment] for segment in tables]


def log_share(counts: Tensor) -> Tensor:
    """Counts [V_new, V_old] of pairs as log P(old | new); of a new code without any, of the rarest old codes."""
    uses, of_new = counts.sum(dim=0), counts.sum(dim=1, keepdim=True)
    counts = torch.where(of_new > 0, counts, (uses == uses.min()).to(counts))
    return (counts / counts.sum(dim=1, keepdim=True)).log()
