"""The numbers of a tokenizer's card: rows of both splits, and its metrics measured on them."""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.code import Code, Condition
from pipeline.draws import ImageDraws, mix
from pipeline.features.passes import ImageRows, PerImage, collect_rows, evenly_spaced, process_batches
from pipeline.images.ahead import read_plain
from pipeline.images.reading import ImageBatch, Images
from pipeline.measuring.card_networks import CardNetworks, CardSettings
from pipeline.measuring.image_statistics import ImageStatistics, gather_statistics
from pipeline.measuring.protocols import computation
from pipeline.measuring.small_prior import learn
from pipeline.measuring.tokenizer import TokenizerMeasuring, suited_metrics
from pipeline.metrics.base import (
    ImageSet,
    LearnedPrior,
    Measurement,
    TokenizerInputs,
    TokenizerMetric,
    build_metrics,
    metric_kinds,
)
from pipeline.tokenizers.base import Tokenizer

BATCH_VALUES = 2**22  # numbers in a batch of images, at most


class CardMeasuring:
    """Measures a tokenizer on images of both splits. `folder` is where the small prior is trained."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        networks: CardNetworks,
        settings: CardSettings,
        accelerator: Accelerator,
        folder: Path,
    ):
        self.tokenizer, self.networks, self.settings, self.accelerator = tokenizer, networks, settings, accelerator
        self.spec, self.device, self.folder = tokenizer.spec, accelerator.device, folder
        self.batch = max(1, min(64, BATCH_VALUES // math.prod(settings.data.image_shape)))
        kinds = metric_kinds(TokenizerMetric) if settings.metrics is None else settings.metrics
        self.chosen_metrics = build_metrics(TokenizerMetric, kinds, noise=settings.noise)

    @cached_property
    def measuring(self) -> TokenizerMeasuring:
        metrics = suited_metrics(self.chosen_metrics, self.spec)
        networks = self.networks.extractors, metrics, self.settings.seed, self.encode, self.networks.vision
        return TokenizerMeasuring(self.tokenizer, *networks)

    def scale(self, train: Images) -> str:
        """Set mean and std of a continuous tokenizer that has none yet to those of its codes; says whose they are."""
        mean, std = self.tokenizer.mean, self.tokenizer.std
        if self.spec.vocab:
            return "ids have none"
        if mean.any() or (std != 1).any():
            return "the mean and std that are stored with the tokenizer"
        z = self.read_codes(train)["z"].double().flatten(0, -mean.ndim - 1)
        spreads = z.std(dim=0, unbiased=False)
        mean.copy_(z.mean(dim=0)), std.copy_(torch.where(spreads > 0, spreads, 1))
        return f"mean and std of the codes of {len(self.chosen(train))} training images, measured here"

    def left_out(self) -> list[str]:
        """What is not measured of this tokenizer, and why."""
        return [why for metric in self.chosen_metrics if (why := metric.why_left_out(self.spec)) is not None]

    def chosen(self, images: Images) -> Tensor:
        return evenly_spaced(None, len(images), min(len(images), self.settings.images))

    @torch.no_grad()
    def encode(self, images: Tensor, condition: Condition | None = None) -> Code:
        """The code with its vectors, looked up where the tokenizer gives ids alone."""
        code = self.tokenizer.encode(images, condition)
        z = self.tokenizer.normalize(self.tokenizer.neck.lookup(code.ids)) if code.z is None else code.z
        return Code(z.float(), code.ids)

    def read_codes(self, images: Images) -> PerImage:
        """`z`, and as far as there are such `ids`, `labels`, `attributes` and `flow_noise`, of the chosen images."""
        chosen = self.chosen(images)

        batches = self.read(images, chosen)

        def measure(indices: Tensor) -> PerImage:
            batch = next(batches).to(self.device)
            code = self.encode(batch.images, batch.condition)
            return labels_of(batch) | self.code_rows(code, indices, images.split)

        return collect_rows(self.accelerator, len(chosen), measure, self.batch)

    def read_reconstructions(self, images: Images) -> ImageStatistics:
        """The rows of `read_codes`, and all that metrics must know of held-out images."""
        chosen = self.chosen(images)

        batches = self.read(images, chosen)

        @torch.no_grad()
        def measure(indices: Tensor) -> ImageRows:
            batch = next(batches)
            encoded = self.measuring.reconstruct(batch, indices)
            rows = labels_of(batch) | self.code_rows(encoded.code, indices, images.split)
            features = {f.name: f.extract(encoded.images) for f in self.networks.extractors.features}
            return ImageRows(rows, summed=features) | self.measuring.rows(encoded)

        return gather_statistics(self.accelerator, len(chosen), measure, torch.arange(0), self.batch)

    def read(self, images: Images, chosen: Tensor) -> Iterator[ImageBatch]:
        """The chosen images, in the batches that passes over them ask for."""
        return read_plain(images, [chosen[each] for each in process_batches(self.accelerator, len(chosen), self.batch)])

    def code_rows(self, code: Code, indices: Tensor, split: str) -> PerImage:
        """A code as rows; a continuous one with `flow_noise`, the end of the flow that it would take."""
        if code.ids is not None:
            return {"z": code.z, "ids": code.ids}
        seeds = [mix(self.settings.seed, "flow", split, index) for index in indices.tolist()]
        noise = ImageDraws.from_seeds(seeds, self.device).normal("noise", tuple(code.z.shape[1:]))
        return {"z": code.z, "flow_noise": noise}

    def inputs(self, train: Images, held_out: Images) -> TokenizerInputs:
        """Read both splits, and train the small prior where a metric needs it."""
        data = {"train": train.fingerprint(), "held_out": held_out.fingerprint(), "size": self.settings.data.image_size}
        common = {"data": data} | computation()
        old, new = self.read_codes(train), self.read_reconstructions(held_out)
        return TokenizerInputs(
            self.tokenizer,
            self.settings.data.image_shape,
            self.settings.seed,
            self.networks.extractors,
            self.accelerator,
            ImageSet(old, common),
            ImageSet(new.narrow, common, new.moments),
            self.encode,
            self.networks.vision_described,
            train.class_names,
            train.attribute_names,
            self.train_prior(old, new.narrow),
            lambda: held_out.plain(self.chosen(held_out)[: self.batch]).to(self.device),
        )

    def train_prior(self, train: PerImage, held_out: PerImage) -> LearnedPrior | None:
        """The small generator's result; None where no metric needs it."""
        if not any("prior" in metric.needs for metric in self.measuring.metrics):
            return None
        codes = [Code(rows["z"] if "ids" not in rows else None, rows.get("ids")) for rows in (train, held_out)]
        settings = self.settings
        return learn(*codes, self.spec, settings.prior_steps, self.folder, settings.seed, self.accelerator)

    def numbers(self, inputs: TokenizerInputs) -> dict[str, dict[str, Measurement]]:
        """Every number, by group and key."""
        groups: dict[str, dict[str, Measurement]] = {}
        for metric, numbers in self.measuring.measure(inputs):
            groups.setdefault(metric.group, {}).update(numbers)
        return groups

    def curves(self, inputs: TokenizerInputs) -> dict[str, Any]:
        """What the figures of a card show, as plain numbers."""
        metrics = [metric for metric in self.measuring.metrics if metric.needs <= inputs.available]
        return {name: values for metric in metrics for name, values in metric.curves(inputs).items()}


def labels_of(batch: ImageBatch) -> PerImage:
    given = None if batch.condition is None else batch.condition.labels
    labels = {} if given is None else {"labels": given}
    return labels if batch.attributes is None else labels | {"attributes": batch.attributes}
