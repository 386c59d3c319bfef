"""What every reconstruction loss promises."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.code import LatentSpec
from pipeline.components import Arguments
from pipeline.nn.adapter_branch import BranchPredictor, ClassPredictor, PredictorShape
from pipeline.nn.full_precision import full_precision
from pipeline.ranges import Count, Counts, Positive, RangedArguments, Whole
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput
from pipeline.validation import SettingError
from pipeline.vision.named_model import NamedModel


@dataclass(frozen=True)
class Attachment:
    """Where a loss reads the tokens that it compares: the code's, where neither a module nor a block is named."""

    module: str | None = None  # of the tokenizer: the output of this module
    block: int | None = None  # of a generator: the hidden states after this block
    class_token: bool = False  # and before those of the patches that of its class token


class Loss(RangedArguments, nn.Module, ABC):
    """Terms of a tokenizer's loss, unweighted means per element; the recipe holds the weights.

    A constructor may take, under these names, what an earlier stage determines: `extractor`, the frozen network that
    the loss declares by `extractor_kind`, and `dim` and `grid` of the tokens at its attachment.
    """

    terms: tuple[str, ...]  # names of the terms that `forward` returns
    any_channels: bool = False  # it compares images of any channels, not of three colours alone
    of_pixels: bool = True  # it reads rebuilt.images alone, so that its gradient can be taken at the image
    rebuilds: bool = False  # an error of reconstruction besides those of pixels, which balanced terms compare with
    of_code: bool = False  # it reads the encoded images, where the target images are others
    of_cut_codes: bool = False  # it weighs by how many tokens the phase's perturbation leaves the decoder
    reads: tuple[str, ...] = ()  # names of rebuilt.features that it needs
    extractor_kind: str | None = None  # a file of pipeline/frozen/, whose network the constructor takes

    def __init__(self):
        super().__init__()
        self.head: nn.Module | None = None  # trained with the tokenizer, no part of it: pipeline.training.loss_heads
        self.attachment: Attachment | None = None
        self.metrics: dict[str, Tensor] = {}  # of the last call, besides its terms, for the log alone

    @classmethod
    def needs(cls, arguments: Arguments) -> tuple[str, ...]:
        """Names of rebuilt.features that the loss needs with these arguments."""
        return cls.reads

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        """The models whose weights it takes, besides an `extractor`, by the argument that names each."""
        return {}

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        """What it computes over all images of a batch together, and so, with `loop.accumulate`, of a micro-batch.

        Everything else is a mean over images, which micro-batches leave as it is.
        """
        return ()

    @classmethod
    def attachment_of(cls, arguments: Arguments) -> Attachment | None:
        """Where a loss with these arguments reads tokens; None where it reads none, or none of its own choice."""
        return None

    @classmethod
    def of_one_grid(cls, arguments: Arguments) -> bool:
        """Whether with these arguments it takes codes of the tokenizer's own grid alone, and none of smaller images."""
        return False

    @classmethod
    def validate(cls, spec: LatentSpec, arguments: Arguments) -> None:
        """ValueError where codes of this geometry and these stated arguments do not fit, known without building."""

    def check(self, tokenizer: type[Tokenizer], arguments: Arguments) -> None:
        """ValueError where a tokenizer with these constructor arguments does not give what the loss reads."""
        return

    def forward_arguments(self, images: Tensor) -> dict[str, Tensor]:
        """Arguments of the tokenizer's `forward` that the loss needs, for images [B, C, H, W] in [-1, 1]."""
        return {}

    @abstractmethod
    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        """The terms of images [B, C, H, W] in [-1, 1] and the tokenizer's outputs for them."""


class Alignment(Loss):
    """A term that compares tokens on a grid, position by position, with the features of a frozen teacher.

    The tokens are a code's; with `block` the hidden states of a generator after that block; with `at` the output of the
    tokenizer's module of that name. `extractor` is a teacher's map, loaded by the `teacher`, `layer` and `teacher_size`
    that a recipe states, see `pipeline.frozen.feature_maps`; its name is a part of every metric.
    """

    extractor_kind = "feature_maps"

    of_pixels = False
    of_code = True

    def __init__(self, extractor: Tap, grid: Sequence[int], block: int | None = None, at: str | None = None):
        super().__init__()
        self.tap, self.grid, self.attachment = extractor, tuple(grid), Attachment(at, block, extractor.class_token)

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.tap.name

    @classmethod
    def attachment_of(cls, arguments: Arguments) -> Attachment:
        return Attachment(arguments.get("at"), arguments.get("block"), bool(arguments.get("class_token")))

    @classmethod
    def validate(cls, spec: LatentSpec, arguments: Arguments) -> None:
        if len(spec.grid) != 2:
            raise ValueError(
                f"it compares places of a map, and tokens on a grid of {list(spec.grid)} have none; take a tokenizer"
                " whose code is a map"
            )

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        (term,) = self.terms
        tokens = rebuilt.code.z if self.head is None else rebuilt.head_outputs[term]
        return self.compare(tokens, self.tap(images, self.grid_of(tokens)), rebuilt.features.get("kept"))

    def grid_of(self, tokens: Tensor) -> tuple[int, ...]:
        """The grid that tokens [B, N, C] are on: `grid`, or of images that are smaller, one as much smaller."""
        scale = math.sqrt(tokens.shape[1] / math.prod(self.grid))
        return tuple(round(side * scale) for side in self.grid)

    @abstractmethod
    def compare(self, tokens: Tensor, targets: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """The term, of tokens [B, N, C] and the teacher's features [B, N, width].

        `kept` [B, N] bool says which positions the tokenizer's encoder has read.
        """


class ExtractorLoss(Loss):
    """A loss in the features of `extractor`, which is frozen and stays in evaluation mode."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """The extractor's."""
        return self.extractor.name

    def train(self, mode: bool = True) -> "ExtractorLoss":
        super().train(mode)
        self.extractor.eval()
        return self


class ClassFeatureLoss(ExtractorLoss):
    """A term that compares codes with a teacher's features of whole images, projected by the tokenizer.

    `extractor` has `features(images)` [B, dim], `dim`, and a `name` ("dinov2_b", "classifier"). A recipe chooses it by
    `teacher`, see `pipeline.frozen.class_features`. The tokenizer's projection is in `rebuilt.class_features`.
    """

    extractor_kind = "class_features"
    of_pixels = False

    @classmethod
    def projected_width(cls, tokenizer: type[Tokenizer], arguments: Arguments) -> int:
        """Channels of features that the tokenizer projects to its code's width; ValueError where it has no layer for
        that."""
        width = tokenizer.capabilities(arguments).projection_width
        if width is None:
            raise ValueError(
                f"{cls.terms[0]} needs a layer from the encoder's width to the code's, and this"
                f" {tokenizer.__name__} has none; leave it out, or take another tokenizer, for example conv_autoencoder"
            )
        return width

    @classmethod
    def check_width(cls, teacher: str, dim: int, width: int) -> None:
        """ValueError unless the teacher's feature has as many channels as the tokenizer projects."""
        if dim != width:
            raise ValueError(
                f"{cls.terms[0]}: the class feature of {teacher} has {dim} channels, but the tokenizer projects"
                f" {width}; give its encoder {dim}, or set teacher: classifier, which is trained with as many as there"
                " are"
            )

    def check(self, tokenizer: type[Tokenizer], arguments: Arguments) -> None:
        self.check_width(self.name, self.extractor.dim, self.projected_width(tokenizer, arguments))

    @torch.no_grad()
    def forward_arguments(self, images: Tensor) -> dict[str, Tensor]:
        return {"class_features": self.extractor.features(images)}


class CodebookContrast(ExtractorLoss):
    """InfoNCE between a head on one quantiser's codes and a teacher's class token.

    As the public implementation of FQGAN has it (showlab/FQGAN, dc34256): of image i, s_i is the head's class token and
    t_i the teacher's, both of length one; the term is the mean of -log softmax_j(s_i . t_j / `temperature`)_i over the
    images i of a process, with a temperature of 1. The head, `depth` blocks as wide as the teacher, reads the channels
    of codebook number `branch` (from 0) of `branches`, and is trained with the tokenizer.

    The `teacher` reads images of `teacher_size` pixels a side; its class token is that of its last hidden state: after
    the last norm in DINOv2, before it in CLIP. A classifier has its features in the place of that.

    The metric `<term>_match_<teacher>` is the fraction of codes that are nearest to their own image.
    """

    extractor_kind = "class_targets"
    of_pixels = False
    of_code = True

    def __init__(
        self,
        extractor: nn.Module,
        dim: Count,
        grid: Counts,
        branch: Whole = 1,
        branches: Count = 2,
        teacher: str = "auto",
        teacher_size: Count = 224,
        depth: Count = 3,
        heads: Count = 8,
        temperature: Positive = 1.0,
    ):
        super().__init__(extractor)
        self.temperature, self.attachment = temperature, Attachment()
        if extractor.width % heads:
            raise SettingError("heads", f" is {heads}, which does not divide the teacher's width of {extractor.width}")
        shape = PredictorShape(depth, heads)
        predictor = ClassPredictor(dim // branches, math.prod(grid), extractor.width, shape)
        self.head = BranchPredictor(predictor, branch, branches)

    @classmethod
    def attachment_of(cls, arguments: Arguments) -> Attachment:
        return Attachment()

    @classmethod
    def of_one_grid(cls, arguments: Arguments) -> bool:
        return True  # of its head's positions

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        return (f"the images that {cls.terms[0]} tells apart",)

    @classmethod
    def validate(cls, spec: LatentSpec, arguments: Arguments) -> None:
        branch, branches = arguments.branch, arguments.branches
        if branch >= branches or spec.dim % branches:
            raise SettingError("branch", f" is {branch} of {branches} in codes of {spec.dim} channels; there is none")

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        (term,) = self.terms
        codes = F.normalize(rebuilt.head_outputs[term].float(), dim=-1)  # [B, width]
        aims = F.normalize(self.extractor(images).float(), dim=-1)
        with full_precision(codes):
            logits = codes @ aims.T / self.temperature
        same = torch.arange(len(logits), device=logits.device)
        self.metrics = {f"{term}_match_{self.name}": (logits.argmax(1) == same).float().mean()}
        return {term: F.cross_entropy(logits, same)}
