"""Features of a frozen teacher that a tokenizer rebuilds from its code alone."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.components import Arguments
from pipeline.losses.base import Loss
from pipeline.ranges import Count, Integer
from pipeline.teachers.base import ReadColours, Resize, Tap
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput
from pipeline.validation import SettingError


class SemanticReconstruction(Loss):
    """`semantic_reconstruction`: 1 - cos of rebuilt and true features of each position, a mean over positions.

    TokenFlow (Qu et al., arXiv:2412.03069), with weight 1. The rebuilt ones are the tokenizer's feature
    `rebuilt_semantic`, [B, C, h, w]. The true ones are the teacher's of the images at `layer` (see
    `pipeline.frozen.feature_maps`), and with `projected` what its projection for whole images makes of each patch after
    the model's last norm, as CLIP has one. The metric `semantic_cosine_<teacher>` is the mean cosine.
    """

    terms = ("semantic_reconstruction",)
    reads = ("rebuilt_semantic",)
    of_pixels = False
    any_channels = True
    extractor_kind = "feature_maps"

    def __init__(
        self,
        extractor: Tap,
        teacher: str = "auto",
        layer: Integer = -1,
        projected: bool = False,
        teacher_size: Count | None = None,
        teacher_resize: Resize = "antialiased",
        teacher_colours: ReadColours = "normalised",
    ):
        super().__init__()
        self.tap, self.name = extractor, extractor.name

    def check(self, tokenizer: type[Tokenizer], arguments: Arguments) -> None:
        width = tokenizer.capabilities(arguments).semantic_width
        if width != self.tap.width:
            raise SettingError(
                "teacher", f": {self.name} has {self.tap.width} channels, the tokenizer's semantic_outputs are {width}"
            )

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        made = rebuilt.features["rebuilt_semantic"].float()
        target = self.tap(images, made.shape[2:])  # [B, h * w, C]
        cosine = F.cosine_similarity(made.flatten(2).mT, target.float(), dim=-1).mean()
        self.metrics = {f"semantic_cosine_{self.name}": cosine.detach()}
        return {"semantic_reconstruction": 1 - cosine}
