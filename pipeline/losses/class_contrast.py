"""A code that tells its image from the others of a batch as a frozen network's class feature does."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.losses.base import ClassFeatureLoss
from pipeline.nn.full_precision import full_precision
from pipeline.nn.processes import gather_rows
from pipeline.ranges import Count, Positive
from pipeline.tokenizers.base import TokenizerOutput


class ClassContrast(ClassFeatureLoss):
    """`class_contrast`: symmetric InfoNCE between codes and a teacher's class features, a mean over the global batch.

    The semantic regularisation of RobusTok (Qiu et al., arXiv:2509.12474, there with weight 0.1), with the loss of CLIP
    (Radford et al., arXiv:2103.00020, figure 3). Of image i, s_i is the mean over tokens of z and t_i the teacher's
    class feature after the tokenizer's own layer from the encoder's width to the code's, which so learns from both. z
    is the code before any perturbation, as in the paper; with `source: perturbed` it is what the decoder reads, as in
    the released code (qiuk2/RobusTok, c4c6760). With logits a_ij = scale s_i . t_j the term is half the mean of
    -log softmax_j(a)_ii plus half that of -log softmax_i(a)_ii. As published, s and t are of any length and the scale
    is 1; with `normalize` their length is one. With accumulation the i and j are those of a micro-batch.

    The `teacher` reads images resampled so that 16 of their pixels are one of its own patches. With `teacher_patch`
    it reads them as they are, its patches resampled to so many pixels per side and its positions to their grid, as timm
    does; the released code has 16. That is for a DINOv2; the stand-in is the same with and without.

    The metric `class_match_<teacher>` is the fraction of codes whose largest logit is their own image's.
    """

    terms = ("class_contrast",)

    def __init__(
        self,
        extractor: nn.Module,
        teacher: str = "auto",
        normalize: bool = False,
        scale: Positive = 1.0,
        source: Literal["clean", "perturbed"] = "clean",
        teacher_patch: Count | None = None,
    ):
        super().__init__(extractor)
        self.teacher, self.normalize, self.scale, self.source = teacher, normalize, scale, source

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("the images that class_contrast tells apart",)

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        perturbed = self.source == "perturbed" and rebuilt.decoder_input is not None
        z = rebuilt.decoder_input if perturbed else rebuilt.code.z
        pairs = torch.stack([z.float().mean(dim=1), rebuilt.class_features.float()], dim=1)  # [B, 2, dim]
        if self.normalize:
            pairs = F.normalize(pairs, dim=-1)
        codes, features = gather_rows(pairs).unbind(1)
        with full_precision(codes):
            logits = self.scale * codes @ features.T
        same = torch.arange(len(logits), device=logits.device)
        self.metrics = {f"class_match_{self.name}": (logits.detach().argmax(dim=1) == same).float().mean()}
        return {"class_contrast": (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2}
