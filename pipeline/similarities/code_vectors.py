"""The distance between code vectors, of two tokenizers that have them in the same space."""

import torch
from torch import Tensor

from pipeline.code import LatentSpec
from pipeline.similarities.base import CodePair, Similarity, check_count
from pipeline.tokenizers.base import Tokenizer

SMALLEST = 1e-12  # squared distance, where all old codes are one vector


class CodeVectors(Similarity):
    """-|new - old|^2 over the mean squared distance of an old code to the next one; no picture is looked at.

    For a codebook that was fitted again, or tuned, under one encoder and decoder: nothing says whether two tokenizers
    have their vectors in one space, and of others the distances mean nothing.
    """

    def check(self, old: LatentSpec, new: LatentSpec) -> None:
        if old.dim != new.dim:
            raise ValueError(
                f"code_vectors compares vectors of one space, and there are {old.dim} channels and {new.dim}; set"
                " similarity={kind: co_occurrence}"
            )
        if any(spec.codebooks > 1 or spec.segments or spec.levels or spec.ends for spec in (old, new)):
            raise ValueError(
                "code_vectors compares the vectors of a single codebook, and these codes have several, segments, levels"
                " or ends; set similarity={kind: co_occurrence}"
            )
        check_count(old, new)

    @torch.no_grad()
    def measure(self, pair: CodePair) -> list[list[Tensor]]:
        old, new = vectors_of(pair.old), vectors_of(pair.new)
        between = torch.cdist(old, old).square().fill_diagonal_(torch.inf)
        scale = between.min(dim=1).values.mean().clamp_min(SMALLEST)
        return [[torch.cdist(new, old).square() / -scale]]


def vectors_of(tokenizer: Tokenizer) -> Tensor:
    """The vectors of all codes, [V, C] float32, at the bottleneck's own scale."""
    ids = torch.arange(tokenizer.spec.codes, device=tokenizer.device)
    return tokenizer.neck.lookup(ids[None])[0].float().cpu()
