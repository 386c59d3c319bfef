"""The ids that another, frozen tokenizer gives to the image, as what a decoder has to predict."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.components import Arguments
from pipeline.losses.base import ExtractorLoss
from pipeline.nn.image_channels import as_rgb
from pipeline.saved_folders import load_tokenizer
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.vision.named_model import NamedModel


class ProxyCodes(ExtractorLoss):
    """`proxy_codes`: cross-entropy of the logits `proxy_logits` [B, P, vocab] to the proxy's ids, a mean over places.

    Yu et al., arXiv:2406.07550, section 3.3: learning these before pixels keeps a small codebook from collapsing.
    `path` is the folder of any tokenizer with one id at each of P places of a map; it stays frozen and is given the
    images in [-1, 1], as RGB where it is for such. Raises ValueError where its ids do not fit the logits.
    """

    terms = ("proxy_codes",)
    of_pixels = False
    reads = ("proxy_logits",)

    def __init__(self, path: str):
        super().__init__(load_tokenizer(path, "proxy_codes.path"))
        spec = self.extractor.spec
        if not spec.vocab or spec.codebooks != 1 or len(spec.grid) != 2:
            raise ValueError(f"proxy_codes.path: {path} does not give one id a place of a map; take one that does")

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        return {"path": NamedModel(arguments.path)}

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        logits = rebuilt.features["proxy_logits"]
        with torch.no_grad():
            rgb = self.extractor.image_shape[0] == 3
            ids = self.extractor.encode(as_rgb(images) if rgb else images).ids
        if (*ids.shape, self.extractor.spec.vocab) != logits.shape:
            vocab, places = self.extractor.spec.vocab, ids.shape[1]
            raise ValueError(
                f"the proxy gives {places} ids of {vocab}, the tokenizer predicts {logits.shape[1]} of"
                f" {logits.shape[2]}; set its proxy_vocab and decoder_patch_size to the proxy's"
            )
        return {"proxy_codes": F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())}
