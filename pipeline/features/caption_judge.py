"""The judge of captions: which of several an image shows, by CLIP, or by two small networks trained on real pairs."""

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Generator, Tensor, nn

from pipeline.draws import mix
from pipeline.features.judge import NOTE, VALUES
from pipeline.features.passes import evenly_spaced
from pipeline.files.writing import read_json, write_json
from pipeline.images.ahead import read_all
from pipeline.images.eight_bits import levels
from pipeline.images.reading import Images
from pipeline.nn.convolution_stages import WIDTH, ConvolutionStages, stage_channels, stem_and_stages
from pipeline.nn.devices import has_fused_updates
from pipeline.nn.image_channels import as_rgb
from pipeline.nn.resize import resize_antialias
from pipeline.ranges import Count, RangedArguments, Whole
from pipeline.stored_weights import check_component
from pipeline.teachers.classifier import jitter
from pipeline.vision.weights import KNOWN, digest, locate

CLIP = "clip_large_336"
TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # of CLIP, either will do
STEPS, BATCH, PIECES = 400, 64, 8192


class CaptionJudge(ABC):
    """Images and captions as rows of one space, in which an image is near to what it shows."""

    name: str  # numbers by it are called after it

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a number by it depends on."""

    @abstractmethod
    def images(self, images: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] to rows [B, D] of length 1, float32."""

    @abstractmethod
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Rows [n, D] of length 1, float32."""


class CaptionMatcher(RangedArguments, ConvolutionStages, ModelMixin, ConfigMixin):
    """Two towers: a small convolutional network of images, and of a caption the mean over its words and their parts.

    Words, and groups of three letters in them, are hashed to one of `pieces` learned rows, so that a caption of new
    words has a place by their parts, and by the words it shares.
    """

    @register_to_config
    def __init__(
        self, width: Count = WIDTH, stages: Whole = 2, stride: Count = 1, dim: Count = 64, pieces: Count = PIECES
    ):
        super().__init__(width, stages, stride)
        self.project = nn.Linear(stage_channels(width, stages)[-1], dim)
        self.embedding = nn.EmbeddingBag(pieces, dim, mode="mean")
        self.words = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))

    def images(self, images: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] to rows [B, dim] of length 1."""
        return F.normalize(self.project(self.maps(images)[-1].mean(dim=(2, 3))), dim=1)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Rows [n, dim] of length 1."""
        pieces = [pieces_of(caption, self.config.pieces) for caption in captions]
        offsets = torch.tensor([0, *map(len, pieces[:-1])]).cumsum(0)
        flat = torch.tensor([piece for row in pieces for piece in row])
        bags = self.embedding(flat.to(self.device), offsets.to(self.device))
        return F.normalize(bags + self.words(bags), dim=1)


class TrainedJudge(CaptionJudge):
    """A `CaptionMatcher` that `fit_caption_judge` has trained."""

    name = "small"

    def __init__(self, network: CaptionMatcher, sha256: str, seed: int):
        self.network, self.sha256, self.seed = network, sha256, seed

    def describe(self) -> dict[str, Any]:
        what = "two small networks trained to match the pictures of the training split to their captions"
        return {"kind": self.name, "what": what, "weights_sha256": self.sha256, "seed": self.seed, "resize": "none"}

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        return self.network.images(images.to(self.network.device)).float()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        return self.network.texts(captions).float()


class ClipJudge(CaptionJudge):
    """Both towers of a published CLIP (Radford et al., arXiv:2103.00020), which sees images whole, at its one size."""

    name = "clip"

    def __init__(self, folder: Path, device: torch.device):
        from transformers import AutoTokenizer, CLIPModel

        self.network = CLIPModel.from_pretrained(folder).requires_grad_(False).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.sha256 = digest(KNOWN[CLIP].file(folder))
        statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # of its pixels
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in statistics)

    def describe(self) -> dict[str, Any]:
        vision = self.network.config.vision_config
        what = (
            f"image and text towers of a CLIP of {vision.num_hidden_layers} layers, {self.network.projection_dim} wide"
        )
        resize = f"antialias to {vision.image_size} x {vision.image_size}"
        return {"kind": self.name, "what": what, "weights_sha256": self.sha256, "resize": resize}

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        size = self.network.config.vision_config.image_size
        pixels = resize_antialias(levels(as_rgb(images.to(self.mean.device))), size, size) / 255
        seen = self.network.vision_model(pixel_values=(pixels - self.mean) / self.std).pooler_output
        return F.normalize(self.network.visual_projection(seen), dim=1).float()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        longest = self.network.config.text_config.max_position_embeddings
        given = self.tokenizer(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        given = {name: given[name].to(self.mean.device) for name in ("input_ids", "attention_mask")}
        read = self.network.text_model(**given).pooler_output
        return F.normalize(self.network.text_projection(read), dim=1).float()


def pieces_of(caption: str, count: int) -> list[int]:
    """Numbers below `count` of the words of a caption, and of the groups of three letters in each."""
    words = [f"<{word}>" for word in "".join(c if c.isalnum() else " " for c in caption.lower()).split()] or ["<>"]
    parts = [word[i : i + 3] for word in words for i in range(max(1, len(word) - 2))]
    return [mix("piece", piece) % count for piece in (*words, *parts)]


def find_clip(weights: Mapping[str, str]) -> Path | None:
    """The folder of CLIP where both its towers and its tokenizer are on this machine."""
    clip = locate(CLIP, weights)
    whole = clip is not None and any(all((clip / name).is_file() for name in names) for names in TOKENIZER)
    return clip if whole else None


def load_caption_judge(weights: Mapping[str, str], seed: int, folder: Path, device: torch.device) -> CaptionJudge:
    """CLIP where it is on this machine, else the judge that `fit_caption_judge` has trained with `seed` in `folder`."""
    if (clip := find_clip(weights)) is not None:
        return ClipJudge(clip, device)
    check_component(CaptionMatcher, folder)
    network = CaptionMatcher.from_pretrained(folder).requires_grad_(False).eval().to(device)
    return TrainedJudge(network, digest(folder / "diffusion_pytorch_model.safetensors"), caption_seed(seed))


def fit_caption_judge(train: Images, seed: int, device: torch.device, folder: Path, earlier: Path | None) -> None:
    """Train a `CaptionMatcher` on a training split, with `caption_seed(seed)`, and save it in `folder`.

    That in the folder `earlier` is copied where it was trained on the same images and captions with the same seed.
    """
    captions = train.source.caption_fingerprint()
    cause = {"images": train.fingerprint(), "captions": captions, "size": train.data.image_size}
    cause |= {"seed": caption_seed(seed), "torch": torch.__version__}
    if earlier is not None and (earlier / NOTE).is_file() and read_json(earlier / NOTE) == cause:
        shutil.copytree(earlier, folder, dirs_exist_ok=True)
        return
    there = [i for i in range(len(train)) if train.source.captions(i)]
    few = min(len(there), VALUES // math.prod(train.data.image_shape))
    rows = torch.tensor(there)[evenly_spaced(None, len(there), few)]
    images = read_all(train, rows).images.to(device)
    fit_matcher(images, [train.source.captions(i) for i in rows.tolist()], caption_seed(seed)).save_pretrained(folder)
    write_json(folder / NOTE, cause)


def caption_seed(seed: int) -> int:
    """A seed that no training of the line uses."""
    return mix(seed, "caption judge")


def fit_matcher(
    images: Tensor, captions: Sequence[Sequence[str]], seed: int, steps: int = STEPS, batch: int = BATCH
) -> CaptionMatcher:
    """Train on images [n, C, H, W] in [-1, 1] and the captions of each, to find each among those of its batch.

    The symmetric cross entropy of CLIP, in which equal captions are one; images are moved, turned and resized a little.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CaptionMatcher(**stem_and_stages(min(images.shape[2:]))).to(images.device)
    randomness, fused = Generator().manual_seed(mix(seed, "batches")), has_fused_updates(images.device) or None
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05, fused=fused)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.2)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (min(batch, len(images)),), generator=randomness)
        drawn = torch.rand(len(chosen), generator=randomness).tolist()
        texts = [captions[i][int(share * len(captions[i]))] for i, share in zip(chosen.tolist(), drawn)]
        seen = network.images(jitter(images[chosen.to(images.device)], randomness))
        scores = network.sharpness.exp().clamp(max=100) * seen @ network.texts(texts).T
        same = torch.tensor([[float(a == b) for b in texts] for a in texts], device=scores.device)
        targets = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return network.eval().requires_grad_(False)
