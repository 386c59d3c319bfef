"""A tokenizer under measurement: from images to the rows, and from rows to the numbers, of its card."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.code import Code, stack_ids
from pipeline.draws import ImageDraws, mix
from pipeline.images.eight_bits import levels
from pipeline.images.reading import ImageBatch, Images
from pipeline.images.rendering import rendered
from pipeline.measuring.card_numbers import (
    Numbers,
    budget_numbers,
    frequency_numbers,
    id_numbers,
    latent_numbers,
    meaning_numbers,
    prior_numbers,
    speed_numbers,
    stability_numbers,
    structure_numbers,
)
from pipeline.measuring.card_sight import CardSettings, Sight
from pipeline.measuring.code_usage import LARGEST
from pipeline.measuring.evaluation import (
    Number,
    Rows,
    code_numbers,
    even,
    fidelity,
    perturbed_numbers,
    reconstruction_numbers,
    spread,
    versions,
)
from pipeline.measuring.small_prior import LARGEST as LARGEST_OF_PRIOR
from pipeline.measuring.small_prior import Learned, learn
from pipeline.measuring.throughput import device_name, rate
from pipeline.metrics.code_entropy import entropy_by_position
from pipeline.metrics.equivariant_views import equivariant_views
from pipeline.metrics.fidelity import ms_ssim
from pipeline.metrics.haar import band_power
from pipeline.metrics.perturbed import grid
from pipeline.metrics.spectrum import radial_power
from pipeline.metrics.stability import code_cosine, ids_changed, with_noise
from pipeline.tokenizers.base import Tokenizer

BATCH_VALUES = 2**22  # numbers in a batch of images, at most


class Measuring:
    """A tokenizer under measurement. Codes are modes, at unit scale; reconstructions are rounded to 8 bits."""

    def __init__(self, tokenizer: Tokenizer, sight: Sight, settings: CardSettings, accelerator: Accelerator):
        self.tokenizer, self.sight, self.settings, self.accelerator = tokenizer, sight, settings, accelerator
        self.spec, self.device, self.size = tokenizer.spec, accelerator.device, settings.data.size
        self.eyes = sight.eyes
        self.learned: Learned | None = None  # of the small prior, once there is one
        self.batch = max(1, min(64, BATCH_VALUES // (3 * self.size**2)))

    def scale(self, train: Images) -> str:
        """Give a continuous tokenizer that has no mean and std yet those of its codes; says whose they are."""
        mean, std = self.tokenizer.mean, self.tokenizer.std
        if self.spec.vocab:
            return "ids have none"
        if mean.any() or (std != 1).any():
            return "the mean and std that are stored with the tokenizer"
        z = self.codes(train)["z"].double().flatten(0, -mean.ndim - 1)
        spreads = z.std(dim=0, unbiased=False)
        mean.copy_(z.mean(dim=0)), std.copy_(torch.where(spreads > 0, spreads, 1))
        return f"mean and std of the codes of {len(self.chosen(train))} training images, measured here"

    def chosen(self, images: Images) -> Tensor:
        return even(None, len(images), min(len(images), self.settings.images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Code:
        """The code with its vectors, those of ids looked up where the tokenizer gives ids alone."""
        code = self.tokenizer.encode(images)
        z = self.tokenizer.normalize(self.tokenizer.neck.lookup(code.ids)) if code.z is None else code.z
        return Code(z.float(), code.ids)

    def codes(self, images: Images) -> Rows:
        """`z`, `ids` and `labels` of the chosen images, as far as there are such."""
        chosen = self.chosen(images)

        def look(places: Tensor) -> Rows:
            batch = images.plain(chosen[places])
            code = self.encode(batch.images.to(self.device))
            return labelled(batch) | named(code) | self.noise(code, places, images.split)

        return spread(self.accelerator, len(chosen), look, self.batch)

    def everything(self, images: Images) -> Rows:
        """All rows that a number of held-out images needs."""
        chosen = self.chosen(images)

        @torch.no_grad()
        def look(places: Tensor) -> Rows:
            batch = images.plain(chosen[places])
            pixels, draws = batch.images.to(self.device), self.draws(places)
            code = self.encode(pixels)
            again = rendered(self.tokenizer, code)
            rows = labelled(batch) | named(code) | self.noise(code, places, images.split)
            rows |= {"vision": self.sight.vision(pixels)}
            rows |= self.compared(pixels, again) | self.moved("again", code, again) | self.divergence(pixels)
            for decibel in self.settings.noise:
                rows |= self.moved(f"noise_{decibel:g}dB", code, with_noise(pixels, decibel, draws))
            for name, view in equivariant_views(pixels, draws).items():
                rows |= {f"view_{name}_code": self.encode(view).z.mean(dim=1)}
                rows |= {f"view_{name}_vision": self.sight.vision(view)}
            return rows

        return spread(self.accelerator, len(chosen), look, self.batch)

    def draws(self, places: Tensor) -> ImageDraws:
        """Randomness that is a function of the seed and an image's number."""
        seeds = [mix(self.settings.seed, "card", place) for place in places.tolist()]
        return ImageDraws.from_seeds(seeds, self.device)

    def noise(self, code: Code, places: Tensor, split: str) -> Rows:
        """`flow_noise`, the end of the flow that a code would take; nothing for ids, which take none."""
        if code.ids is not None:
            return {}
        seeds = [mix(self.settings.seed, "flow", split, place) for place in places.tolist()]
        return {"flow_noise": ImageDraws.from_seeds(seeds, self.device).normal("noise", tuple(code.z.shape[1:]))}

    def compared(self, images: Tensor, again: Tensor) -> Rows:
        """Images [B, 3, H, W] and their reconstructions, pixel by pixel and frequency by frequency."""
        rows = {f.name: f.extract(images) for f in self.eyes.features}
        rows |= {f"rebuilt_{f.name}": f.extract(again) for f in self.eyes.features}
        rows |= {f"rebuilt_{name}": values for name, values in fidelity(images, again, self.eyes.backbone).items()}
        rows |= {"ms_ssim": ms_ssim(levels(images), levels(again))}
        rows |= {"band_error": band_power(images - again), "band_power": band_power(images)}
        return rows | {"residual": radial_power(images - again), "power": radial_power(images)}

    def moved(self, name: str, code: Code, images: Tensor) -> Rows:
        """How the code of `images` differs from `code`."""
        other = self.encode(images)
        rows = {f"{name}_cosine": code_cosine(code.z, other.z)}
        return rows if code.ids is None else rows | {f"{name}_changed": ids_changed(code.ids, other.ids)}

    def divergence(self, images: Tensor) -> Rows:
        """`kl` of a bottleneck that has this term, as a row an image."""
        _, terms = self.tokenizer.neck(self.tokenizer.features(images))
        return {"kl": terms["kl"].expand(len(images))} if "kl" in terms else {}

    def numbers(
        self, old: Rows, new: Rows, train: Images, held_out: Images, out: Path
    ) -> dict[str, list[tuple[str, Number]]]:
        """Every number by title and key; `old` are the rows of the training split, `new` of the held-out one."""
        spec = self.spec
        data = {"train": train.fingerprint(), "held_out": held_out.fingerprint(), "size": self.size}
        common = {"data": data, "precision": "networks float32, statistics float64", "versions": versions()}
        of_new = {"images": f"{len(new['z'])} held-out images"} | common
        again = {name.removeprefix("rebuilt_"): values for name, values in new.items() if name.startswith("rebuilt_")}
        rebuilt = reconstruction_numbers(
            new,
            again,
            self.eyes.features,
            self.eyes.described["perceptual"],
            {"code": "the mode of the posterior"} | common,
        )
        countable = spec.vocab <= LARGEST
        usage = dict(code_numbers(old.get("ids"), spec.vocab) if countable else ())
        for number in usage.values():
            number.protocol |= common
        shaken = self.perturbed(new, common) if countable else ()
        names = train.class_names
        return {
            "Reconstructions": [*structure_numbers(new, self.size, of_new), *rebuilt, *shaken],
            "Frequencies": [*frequency_numbers(new, of_new)],
            "Budget": [*budget_numbers(spec, self.size)],
            "Ids": [*usage.items(), *id_numbers(old.get("ids"), old.get("labels"), names, spec, common)],
            "Stability": [*stability_numbers(new, self.settings.noise, of_new)],
            "Meaning": [*meaning_numbers(old, new, train.attribute_names, self.sight.vision_described, common)],
            "Latents": [*latent_numbers(new, self.size, of_new)],
            "How learnable": [*self.prior(old, new, of_new, out / "prior")],
            "Speed": [*self.speed(held_out)],
        }

    def left_out(self) -> list[str]:
        """What is not measured of this tokenizer, and why."""
        vocab = self.spec.vocab
        found = [f"use of codes and pFID: {vocab} codes are too many to count one by one"] if vocab > LARGEST else []
        return found + ([f"small prior: {vocab} codes are too many"] if vocab > LARGEST_OF_PRIOR else [])

    def perturbed(self, new: Rows, common: dict[str, Any]) -> Numbers:
        """pFID, by features."""

        def see(code: Code) -> Rows:
            images = rendered(self.tokenizer, code.to(self.device))
            return {feature.name: feature.extract(images) for feature in self.eyes.features}

        code = Code(ids=new["ids"]) if "ids" in new else Code(z=new["z"])
        ways, seed = grid(self.spec), mix(self.settings.seed, "perturbed")
        neck, features = self.tokenizer.neck, self.eyes.features
        return perturbed_numbers(self.accelerator, neck, ways, code, see, new, features, seed, common)

    def prior(self, old: Rows, new: Rows, protocol: dict[str, Any], folder: Path) -> Numbers:
        """The loss of a small generator; nothing where there are too many codes for it."""
        if self.spec.vocab > LARGEST_OF_PRIOR:
            return
        codes = [Code(rows["z"] if "ids" not in rows else None, rows.get("ids")) for rows in (old, new)]
        settings = self.settings
        self.learned = learn(*codes, self.spec, settings.prior_steps, folder, settings.seed, self.accelerator)
        found = self.learned.loss, old.get("ids")
        yield from prior_numbers(*found, self.spec, self.size, self.learned.described, protocol)

    def speed(self, images: Images) -> Numbers:
        pixels = images.plain(self.chosen(images)[: self.batch]).images.to(self.device)
        code = self.encode(pixels)
        work = {"encode": lambda: self.tokenizer.encode(pixels), "decode": lambda: self.tokenizer.decode(code)}
        with torch.no_grad():
            rates = {name: rate(task, len(pixels), self.device) for name, task in work.items()}
        protocol = {
            "device": device_name(self.device),
            "images": f"{len(pixels)} of {self.size} x {self.size} pixels at once",
            "precision": "float32",
            "torch": torch.__version__,
            "times": "median of 5 after one to warm up, data in memory",
        }
        return speed_numbers(rates, protocol)

    def curves(self, old: Rows, new: Rows) -> dict[str, Any]:
        """What the figures of a card show, as plain numbers."""
        ids = old.get("ids")
        found = {name: new[name].mean(dim=0).tolist() for name in ("power", "residual")}
        noises = sorted(self.settings.noise)
        for kind in ("changed", "cosine"):
            if f"again_{kind}" in new:
                found[kind] = {f"{db:g}": new[f"noise_{db:g}dB_{kind}"].mean().item() for db in noises}
        if ids is not None:
            found["position_entropy"] = entropy_by_position(stack_ids(ids)).tolist()
        if self.learned is not None:
            found["prior"] = {str(step): loss for step, loss in self.learned.course.items()}
        return found


def labelled(batch: ImageBatch) -> Rows:
    labels = {} if batch.condition is None else {"labels": batch.condition.labels}
    return labels if batch.attributes is None else labels | {"attributes": batch.attributes}


def named(code: Code) -> Rows:
    return {"z": code.z} | ({} if code.ids is None else {"ids": code.ids})
