"""LlamaGen's text-conditional generators (FoundationVision/LlamaGen, arXiv:2406.06525)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need
from pipeline.published.llamagen_gpt import TOKENS, WHOSE, square, trunk_arguments, trunk_weights

WHAT = "LlamaGen generators by text (FoundationVision/LlamaGen: t2i_XL_stage1_256.pt; stage2_512 with tokens=1024)"
CAPTIONS = {
    r"cls_embedding\.cap_proj\.fc1\.weight": r"text.embedding.0.weight",
    r"cls_embedding\.cap_proj\.fc2\.weight": r"text.embedding.2.weight",
    r"cls_embedding\.uncond_embedding": r"text.null.features",
}


def convert(state: Mapping[str, Tensor], heads: int | None = None, tokens: int = TOKENS) -> dict[str, object]:
    """{"network", "objective"} of a LlamaGen state that reads captions, features of FLAN-T5-XL of 120 places.

    No weight tells the number of tokens: a model of 512 px has 1024. `heads` follows from the width where published.
    The release guides away from its null at the places of each caption alone; to do so, give `negative` with the null's
    features and the captions' masks. Raises ValueError for keys or shapes that are not LlamaGen's.
    """
    null = need(state, "cls_embedding.uncond_embedding", WHOSE)
    asked = {"text_tokens": len(null), "text_dim": null.shape[1], "text_projection": "mlp"}
    arguments = trunk_arguments(state, heads, square(tokens)) | {"num_classes": 0, **asked}
    network = build_component("networks", arguments)
    weights = trunk_weights(state, CAPTIONS)
    zeros = torch.zeros(network.config.width, dtype=null.dtype)  # the release has no biases here
    weights |= {"text.embedding.0.bias": zeros, "text.embedding.2.bias": zeros.clone(), "text.null.mask": mask(null)}
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": "next_token"})}


def mask(null: Tensor) -> Tensor:
    """The null has all its places."""
    return torch.ones(len(null), dtype=torch.bool)
