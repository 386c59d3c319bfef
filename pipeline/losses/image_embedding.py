"""Distance of the embedding that a tokenizer predicts from a code to the one that a frozen network has of the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.losses.base import ExtractorLoss
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput


class ImageEmbedding(ExtractorLoss):
    """`image_embedding`: squared error of the tokenizer's `image_embedding` [B, D], a mean over images and channels.

    SEED (Ge et al., arXiv:2310.01218), there of CLIP ViT-H's embedding, not of unit length, with weight 0.5. `teacher`
    chooses the network, see `pipeline.frozen.image_embedding`. The metric `embedding_cosine_<teacher>` is their cosine.
    """

    terms = ("image_embedding",)
    reads = ("image_embedding",)
    of_pixels = False
    any_channels = True
    extractor_kind = "image_embedding"

    def __init__(self, extractor: nn.Module, teacher: str = "auto"):
        super().__init__(extractor)
        self.teacher = teacher

    @classmethod
    def predicted_width(cls, tokenizer: type[Tokenizer], arguments: Arguments) -> int:
        """Channels of the embedding that the tokenizer predicts; ValueError where it predicts none."""
        width = tokenizer.capabilities(arguments).embedding_width
        if width is None:
            raise ValueError(
                f"image_embedding: a {tokenizer.__name__} predicts no embedding of the image; leave the loss out, or"
                " take another tokenizer, for example seed"
            )
        return width

    @classmethod
    def check_width(cls, teacher: str, dim: int, width: int) -> None:
        """ValueError unless the teacher's feature has as many channels as the tokenizer predicts."""
        if dim != width:
            raise ValueError(
                f"image_embedding: the feature of {teacher} has {dim} channels, but the tokenizer predicts {width}; set"
                f" its embedding_width={dim}, or teacher: classifier, which is trained with as many as are predicted"
            )

    def check(self, tokenizer: type[Tokenizer], arguments: Arguments) -> None:
        self.check_width(self.name, self.extractor.dim, self.predicted_width(tokenizer, arguments))

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.extractor.features(images).float()
        predicted = rebuilt.features["image_embedding"].float()
        cosine = F.cosine_similarity(predicted.detach(), target, dim=1).mean()
        self.metrics = {f"embedding_cosine_{self.name}": cosine}
        return {"image_embedding": F.mse_loss(predicted, target)}
