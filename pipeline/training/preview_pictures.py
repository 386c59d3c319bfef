"""The pictures of previews: reconstructions of fixed images, and samples of fixed seeds and classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from pipeline.captions.table import Captions
from pipeline.features.extractors import PixelFeatures
from pipeline.features.passes import evenly_spaced
from pipeline.images import grids
from pipeline.images.ahead import read_plain
from pipeline.images.reading import Images
from pipeline.images.stored_pixels import to_pixels
from pipeline.latent_pipeline import LatentPipeline
from pipeline.metrics.near_copies import near_copies
from pipeline.nn.image_size import Sides
from pipeline.recipes.arithmetic import Precision
from pipeline.runs.precision import arithmetic
from pipeline.training.held_out import ROWS
from pipeline.training.loss_heads import detach_heads
from pipeline.training.pairs import Pairs
from pipeline.training.previews import PreviewPicture

CLASSES, EACH = 10, 4  # of the samples: classes at most, evenly through them, and images of each
SEARCHED = 20_000  # training images at most among which near copies of samples are looked for
Averages = Mapping[str, nn.Module]


@dataclass(frozen=True)
class ReconstructedImages:
    """A tokenizer's preview: held-out images beside what it makes of them."""

    held_out: Images
    precision: Precision
    device: torch.device

    @torch.no_grad()
    def __call__(self, averages: Averages) -> PreviewPicture:
        tokenizer, _ = detach_heads(averages["tokenizer"])
        batch = self.held_out.plain(shown_rows(len(self.held_out), self.held_out.data.sides)).to(self.device)
        with arithmetic(self.device, self.precision):
            rebuilt = tokenizer.decode(tokenizer.encode(batch.images, batch.condition), batch.condition)
        return PreviewPicture(grids.reconstructions(batch.images.cpu(), rebuilt.float().cpu()))


@dataclass(frozen=True)
class DecodedPairs:
    """A post-trained decoder's preview: held-out images beside what it makes of the codes that the generator made."""

    held_out: Pairs
    precision: Precision
    device: torch.device

    @torch.no_grad()
    def __call__(self, averages: Averages) -> PreviewPicture:
        sides = self.held_out.originals.source.data.sides
        batch = self.held_out.plain(shown_rows(len(self.held_out), sides)).to(self.device)
        with arithmetic(self.device, self.precision):
            decoded = averages["tokenizer"](batch.code, batch.condition).images
        return PreviewPicture(grids.reconstructions(batch.images.cpu(), decoded.float().cpu()))


class Samples:
    """A generator's preview: samples of fixed seeds and classes, by the pipeline that `assemble` makes of the averages.

    Where there are few training images it is counted how many of the samples are near copies of one.
    """

    def __init__(
        self,
        assemble: Callable[[Averages], LatentPipeline],
        train: Images,
        held_out: Images,
        seed: int,
        precision: Precision,
        captions: Captions | None = None,
    ):
        """With `captions`, of held-out images, the samples are of these, and of the images' classes."""
        self.assemble, self.train, self.held_out, self.captions = assemble, train, held_out, captions
        self.seed, self.precision, self.space = seed, precision, PixelFeatures(32)

    def __call__(self, averages: Averages) -> PreviewPicture:
        pipe = self.assemble(averages)
        pipe.set_progress_bar_config(disable=True)
        if self.captions is not None:
            return self.of_captions(pipe, self.captions)
        classes = pipe.num_classes
        labels = evenly_spaced(None, classes, min(classes, CLASSES)).repeat_interleave(EACH) if classes else None
        count = CLASSES * EACH if labels is None else len(labels)
        seeds = [Generator().manual_seed(self.seed + i) for i in range(count)]
        with arithmetic(pipe.device, self.precision):
            asked = None if labels is None else labels.tolist()
            images = pipe(asked, num_images=count, generator=seeds, output_type="pt").images.float().cpu()
        names = [pipe.id2label.get(label, str(label)) for label in range(classes)]
        pixels = to_pixels(images * 2 - 1)
        drawn = grids.samples_by_class(pixels, None if labels is None else labels.numpy(), names)
        return PreviewPicture(drawn, self.count_copies(images * 2 - 1))

    def of_captions(self, pipe: LatentPipeline, captions: Captions) -> PreviewPicture:
        """Samples of captions of held-out images, evenly through these, each above its caption."""
        rows = evenly_spaced(None, len(captions), min(len(captions), CLASSES * EACH))
        labels = [self.held_out.source.label_of(row) for row in rows.tolist()] if pipe.num_classes else None
        seeds = [Generator().manual_seed(self.seed + i) for i in range(len(rows))]
        features = captions.condition(rows)
        with arithmetic(pipe.device, self.precision):
            images = pipe(labels, prompt_embeds=features, generator=seeds, output_type="pt").images.float().cpu()
        drawn = grids.captioned(to_pixels(images * 2 - 1), captions.texts(rows), CLASSES)
        return PreviewPicture(drawn, self.count_copies(images * 2 - 1))

    def count_copies(self, samples: Tensor) -> tuple[float, float] | None:
        """The fractions of samples [B, C, H, W], and of held-out images, that are near copies, as `NearCopies` has it.

        None where there are too many images to look through, or too few.
        """
        if not (2 <= len(self.train) <= SEARCHED and len(self.held_out)):
            return None
        copies = near_copies(self.space.extract(samples), self.held_out_rows, self.train_rows)
        return copies.share, copies.share_held_out

    @cached_property
    def train_rows(self) -> Tensor:
        return self.rows(self.train, len(self.train))

    @cached_property
    def held_out_rows(self) -> Tensor:
        return self.rows(self.held_out, ROWS)

    def rows(self, images: Images, count: int) -> Tensor:
        chosen = evenly_spaced(None, len(images), min(count, len(images)))
        return torch.cat([self.space.extract(batch.images) for batch in read_plain(images, chosen.split(64))])


@dataclass(frozen=True)
class Both:
    """The preview of tokenizer and generator together: reconstructions, and below them samples."""

    reconstructions: ReconstructedImages
    samples: Samples

    def __call__(self, averages: Averages) -> PreviewPicture:
        above, below = self.reconstructions(averages), self.samples(averages)
        return replace(below, image=stack(above.image, below.image))


def shown_rows(total: int, sides: Sides) -> Tensor:
    """As many rows as images of these sides fit beside each other, evenly through a set."""
    return evenly_spaced(None, total, min(total, grids.columns(sides)))


def stack(above: Image.Image, below: Image.Image) -> Image.Image:
    gap = above.height + 8
    sheet = Image.new("RGB", (max(above.width, below.width), gap + below.height), grids.PAPER)
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, gap))
    return sheet
