"""Caption retrieval: whether a judge finds the prompt of a sample among others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from pipeline.draws import mix
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import PerImage, count
from pipeline.metrics.base import Measurements, Quantity, SampleInputs, SampleMetric

AMONG = 10  # captions that an image is shown: its own, and others


class CaptionRetrieval(SampleMetric):
    """The fraction of samples whose own prompt is nearest, by a judge of captions, of ten: its own and nine others.

    The others are drawn from the captions of held-out images and the prompts, equal ones left out; an image of the
    same caption is shown the same ones. R-precision of Xu et al., arXiv:1711.10485, section 4.1, whose ninety-nine
    others are too many for small collections.
    """

    quantities = (
        Quantity(
            "caption_retrieval_{}",
            "Caption retrieval, {} judge",
            "higher",
            "fraction of samples for which a judge finds the prompt among ten captions; chance and real held-out images"
            " with their captions stand beside",
            "share",
            headline=True,
        ),
    )
    needs = frozenset({"captions"})
    order = 12

    def rows(self, images: Tensor, extractors: FeatureExtractors) -> PerImage:
        return {} if extractors.caption_judge is None else {"seen": extractors.caption_judge.images(images)}

    def measure(self, inputs: SampleInputs) -> Measurements:
        judge, captions = inputs.extractors.caption_judge, inputs.near.captions
        texts = torch.cat([judge.texts(captions[i : i + 256]).cpu() for i in range(0, len(captions), 256)])
        known = [torch.unique(of["captions"]) for of in (inputs.samples, inputs.held_out) if "captions" in of]
        pool = torch.unique(torch.cat(known))
        among = min(AMONG, len(pool))
        if among < 2:
            return
        shown = {int(own): show(captions, pool, int(own), among) for own in pool}
        value = accuracy(inputs.samples, texts, shown)
        real = accuracy(inputs.held_out, texts, shown) if "captions" in inputs.held_out else None
        images = f"{count(inputs.samples)} samples"
        where: dict[str, Any] = {"judge": judge.describe(), "images": images, "among": among}
        if real is not None:
            where["held_out"] = f"{count(inputs.held_out)} real held-out images, by their first captions"
        (quantity,) = self.quantities
        yield quantity.measurement(
            value, where | inputs.protocol, judge.name, held_out=real, details={"chance": 1 / among}
        )


def show(captions: Sequence[str], pool: Tensor, own: int, among: int) -> Tensor:
    """Numbers [among] of the captions that images of the caption `own` are shown, it first; a function of its text."""
    others = pool[pool != own]
    order = torch.randperm(len(others), generator=Generator().manual_seed(mix("others", captions[own])))
    return torch.cat([torch.tensor([own]), others[order[: among - 1]]])


def accuracy(rows: PerImage, texts: Tensor, shown: dict[int, Tensor]) -> float:
    """Fraction of images to which none of the captions shown is nearer than their own."""
    candidates = torch.stack([shown[int(own)] for own in rows["captions"]])  # [n, among]
    scores = (rows["seen"].cpu().float()[:, None] * texts[candidates]).sum(-1)
    return (scores.argmax(1) == 0).double().mean().item()
