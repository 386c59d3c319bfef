"""Every new code has a mean of the rows of the nearest old ones, weighted by how near they are."""

import torch
from torch import Tensor

from pipeline.components import Node, build
from pipeline.ranges import Count, Positive
from pipeline.transplants.base import Transplant


class Weighted(Transplant):
    """The mean of the `neighbours` nearest old rows, weighted by the softmax of similarity / temperature.

    As WECHSEL (Minixhofer et al., arXiv:2112.06598) starts a language model on another vocabulary. By co-occurrence at
    temperature 1 and with all old codes as neighbours it is the expected row of the old code at a new code's places.
    """

    def __init__(
        self,
        neighbours: Count = 10,
        temperature: Positive = 1.0,
        similarity: Node = {"kind": "co_occurrence"},  # noqa: B006  it is not changed
    ):
        super().__init__()
        self.neighbours, self.temperature = neighbours, temperature
        self.similarity = build("similarities", similarity)

    def rows(self, old: Tensor, drawn: Tensor, similarity: Tensor | None) -> Tensor:
        values, places = similarity.topk(min(self.neighbours, len(old)), dim=1)
        weights = (values / self.temperature).softmax(dim=1).to(old)
        return torch.einsum("vk,vk...->v...", weights, old[places])
