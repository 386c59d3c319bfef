"""A code that tells its image from the others of a batch as a frozen network's class feature does."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.losses.base import Loss
from pipeline.nn.processes import rows_of_all
from pipeline.tokenizers.base import Rebuilt, Tokenizer


class ClassContrast(Loss):
    """`class_contrast`: symmetric InfoNCE between codes and a teacher's class features, a mean over the global batch.

    The semantic regularisation of RobusTok (Qiu et al., arXiv:2509.12474, there with weight 0.1), with the loss of CLIP
    (Radford et al., arXiv:2103.00020, figure 3). Of image i, s_i is the mean over tokens of the code z, as it is before
    any perturbation, and t_i the teacher's class feature after the tokenizer's own layer from the encoder's width to
    the code's, which so learns from both. With logits a_ij = scale s_i . t_j the term is half the mean of
    -log softmax_j(a)_ii plus half that of -log softmax_i(a)_ii. As published, s and t are of any length and the scale
    is 1; with `normalize` their length is one. With accumulation the i and j are those of a micro-batch.

    `class_teacher` is frozen here and stays in evaluation mode: `features(images)` [B, dim], `dim`, and a `name`
    ("dinov2_b", "classifier"). A recipe chooses it by `teacher`, see `pipeline.frozen.class_teacher`. The metric
    `class_match_<name>` is the share of codes whose largest logit is their own image's.
    """

    terms = ("class_contrast",)
    of_pixels = False

    def __init__(
        self,
        class_teacher: nn.Module,
        teacher: str = "auto",
        normalize: bool = False,
        scale: float = 1.0,
    ):
        super().__init__()
        if scale <= 0:
            raise ValueError(f"class_contrast: scale is {scale:g}; logits need one above 0, and 1 is as published")
        self.class_teacher = class_teacher.requires_grad_(False).eval()
        self.teacher, self.normalize, self.scale = teacher, normalize, scale

    @property
    def name(self) -> str:
        return self.class_teacher.name

    def train(self, mode: bool = True) -> "ClassContrast":
        super().train(mode)
        self.class_teacher.eval()
        return self

    def check(self, tokenizer: type[Tokenizer], arguments: Arguments) -> None:
        check_width(self.name, self.class_teacher.dim, projected_width(tokenizer, arguments))

    @torch.no_grad()
    def asks(self, images: Tensor) -> dict[str, Tensor]:
        return {"class_features": self.class_teacher.features(images)}

    def forward(self, images: Tensor, rebuilt: Rebuilt) -> dict[str, Tensor]:
        pairs = torch.stack([rebuilt.code.z.float().mean(dim=1), rebuilt.class_features.float()], dim=1)  # [B, 2, dim]
        if self.normalize:
            pairs = F.normalize(pairs, dim=-1)
        codes, aims = rows_of_all(pairs).unbind(1)
        logits = self.scale * codes @ aims.T
        own = torch.arange(len(logits), device=logits.device)
        self.metrics = {f"class_match_{self.name}": (logits.detach().argmax(dim=1) == own).float().mean()}
        return {"class_contrast": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}


def projected_width(tokenizer: type[Tokenizer], arguments: Arguments) -> int:
    """Channels of features that the tokenizer brings to its code's width; ValueError where it has no layer for that."""
    width = tokenizer.capabilities(arguments).projection_width
    if width is None:
        raise ValueError(
            "class_contrast needs a layer from the encoder's width to the code's, and this"
            f" {tokenizer.__name__} has none; leave it out, or take another tokenizer, for example conv_autoencoder"
        )
    return width


def check_width(teacher: str, dim: int, width: int) -> None:
    """ValueError unless the teacher's class feature has as many channels as the tokenizer projects."""
    if dim != width:
        raise ValueError(
            f"class_contrast: the class feature of {teacher} has {dim} channels, but the tokenizer projects {width};"
            f" give its encoder {dim}, or set teacher: classifier, which is trained with as many as there are"
        )
