"""Features of a frozen vision model that a tokenizer rebuilds from its code, against those that it has read."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.nn.holistic import EPSILON
from pipeline.tokenizers.base import TokenizerOutput


class FeatureReconstruction(Loss):
    """`feature_reconstruction`: 1 - cos of rebuilt and true features of each place, a mean over places.

    They are the tokenizer's features `rebuilt_foundation` and `foundation`, [B, M, C]; the target has no gradient.
    Hita-U (arXiv:2507.02358, in its public implementation).
    """

    terms = ("feature_reconstruction",)
    any_channels = True
    of_pixels = False
    reads = ("foundation", "rebuilt_foundation")

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        made, target = (rebuilt.features[name].float() for name in ("rebuilt_foundation", "foundation"))
        return {"feature_reconstruction": 1 - F.cosine_similarity(made, target.detach(), dim=-1, eps=EPSILON).mean()}
