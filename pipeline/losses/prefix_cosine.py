"""Tokens of an early layer of the decoder like a vision model's features, the more so the fewer tokens it was given."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pipeline.code import LatentSpec
from pipeline.components import Arguments
from pipeline.losses.base import Alignment
from pipeline.nn.feature_head import FeatureHead, HeadShape
from pipeline.ranges import Count, Counts, Integer
from pipeline.teachers.base import Resize, Tap
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.validation import SettingError


class PrefixCosine(Alignment):
    """`prefix_cosine`: share(k) (1 - cos(h(x)_i, f_i)), a mean over positions i, where the decoder was given k tokens.

    ReToK's hierarchical semantic regularisation (Fu et al., arXiv:2601.01535): x is the output of the decoder's module
    `at`, h a trained head, f the teacher's features. The phase's perturbation `prefix_drop` has to cut codes off. The
    share falls in a line from 1 at `least` tokens to 0 at `full`, and stays 0 beyond. The paper says that the term
    weakens towards the tail; the line is inferred.

    Raises ValueError, as `validate` does, unless `least` is below `full`.
    """

    terms = ("prefix_cosine",)
    of_cut_codes = True

    def __init__(
        self,
        extractor: Tap,
        dim: Count,
        grid: Counts,
        at: str,
        least: Count,
        full: Count,
        teacher: str = "auto",
        layer: Integer = -1,
        teacher_size: Count | Literal["grid"] | None = "grid",
        teacher_resize: Resize = "antialiased",
        head: HeadShape = HeadShape(),
    ):
        super().__init__(extractor, grid, at=at)
        check_lengths(least, full)
        self.least, self.full = least, full
        self.head = FeatureHead(dim, extractor.width, grid, head)

    @classmethod
    def validate(cls, spec: LatentSpec, arguments: Arguments) -> None:
        super().validate(spec, arguments)
        check_lengths(arguments.least, arguments.full)

    def share(self, kept: int) -> float:
        """What the term is multiplied by where the decoder was given so many tokens."""
        return min(max(1 - (kept - self.least) / (self.full - self.least), 0.0), 1.0)

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        read = rebuilt.code.z if rebuilt.decoder_input is None else rebuilt.decoder_input
        share = self.share(read.shape[1])
        return {name: share * term for name, term in super().forward(images, rebuilt).items()}

    def compare(self, tokens: Tensor, targets: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        cosine = F.cosine_similarity(tokens.float(), targets.float(), dim=-1).mean()
        self.metrics = {f"cosine_{self.name}": cosine.detach()}
        return {"prefix_cosine": 1 - cosine}


def check_lengths(least: int, full: int) -> None:
    if least >= full:
        raise SettingError("least", f" is {least}, and full is {full}; give fewer tokens than that")
