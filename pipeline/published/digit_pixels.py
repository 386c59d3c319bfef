"""DiGIT's clusters and its second generator, of pixel ids, as a tokenizer (DAMO-NLP-SG/DiGIT, arXiv:2410.12490)."""

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.bottlenecks.k_means import KMeans
from pipeline.components import build as build_component
from pipeline.nn.prefixed_transformer import PrefixedTransformer
from pipeline.published.checkpoint import fill, heads_of, need
from pipeline.published.digit import (
    END,
    HEADS,
    SPECIAL,
    WHOSE,
    blocks_of,
    depth_of,
    hidden_of,
    is_post_norm,
    positions_of,
    special_last,
)
from pipeline.saved_folders import load_tokenizer

WHAT = "DiGIT's clusters and second generator (the checkpoint of stage 2), with tokenizer=FOLDER of the pixel tokenizer"
START = "facebook/dinov2-with-registers-base"
LAYERS = {384: 12, 768: 12, 1024: 24}  # of DINOv2 by its width
ENCODER_PATCH = 14  # of DINOv2
TAP = -3  # the block whose output is clustered, counted from the end


def convert(
    state: Mapping[str, Tensor],
    tokenizer: str,
    start: str = START,
    heads: int | None = None,
    taps: list[int] | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of the state of a second generator.

    `tokenizer` is the folder of the pixel tokenizer whose ids it writes, imported or trained, which must give one id
    per token; images have its size. The release's is MAGE's VQGAN of 256 px, whose keys below `vqgan.` stay behind.
    The frozen encoder is that of `start`, a folder or hub id of DINOv2, whose layer `taps` is clustered. `heads`
    follows from the width for published sizes. Raises ValueError for keys or shapes that are not DiGIT's.
    """
    pixels = load_tokenizer(tokenizer, "tokenizer")
    dim, vocab = need(state, "centroids", WHOSE).shape
    width = need(state, "decoder.output_projection.weight", WHOSE).shape[1]
    image_size = pixels.config.image_size
    model = {"model_type": "dinov2_with_registers", "hidden_size": dim, "patch_size": ENCODER_PATCH}
    model |= {"num_hidden_layers": LAYERS[dim]} if dim in LAYERS else {}
    own = {name: value for name, value in pixels.config.items() if not name.startswith("_")}
    own = {name: value for name, value in own.items() if name not in ("image_size", "image_channels")}
    node = {
        "kind": "clustered_features",
        "frozen_encoder": {
            **{"kind": "vision_transformer", "start": start, "model": model, "image_patch": 16},
            **{"taps": taps or [TAP], "norm": "own"},
        },
        "pixel_tokenizer": {"kind": type(pixels).__module__.rpartition(".")[2], **own},
        **{"vocab": vocab, "width": width, "depth": depth_of(state), "heads": heads or heads_of(width, HEADS)},
        **{"feed_forward_ratio": hidden_of(state) / width, "post_norm": is_post_norm(state), "special_ids": SPECIAL},
    }
    built = build_component("tokenizers", node, image_size=image_size)
    built.pixels.load_state_dict(pixels.state_dict())
    built.neck.load_state_dict(clusters(state).state_dict())
    written = built.pixels.spec
    second = translator(state, built.spec.tokens, written.tokens, heads)
    if second.vocab != written.vocab:
        raise ValueError(f"these weights write {second.vocab} ids, and {tokenizer} has {written.vocab}; name another")
    built.translator.load_state_dict(second.state_dict())
    return {"tokenizer": built.eval()}


def clusters(state: Mapping[str, Tensor]) -> KMeans:
    """The centroids of either stage, found already."""
    rows = need(state, "centroids", WHOSE).T
    neck = KMeans(rows.shape[1], len(rows))
    neck.codebook.copy_(rows)
    neck.done.fill_(neck.rounds)
    return neck.eval()


def translator(state: Mapping[str, Tensor], prefix: int, tokens: int, heads: int | None = None) -> PrefixedTransformer:
    """The second generator, of `tokens` ids after a `prefix` of so many; ValueError where weights are not of one."""
    table = need(state, "decoder.embed_tokens.weight", WHOSE) * math.sqrt(state["decoder.embed_tokens.weight"].shape[1])
    head = need(state, "decoder.output_projection.weight", WHOSE)
    rows, width = head.shape
    vocab, codes = rows - SPECIAL, len(table) - rows - SPECIAL
    sizes = (width, depth_of(state), heads or heads_of(width, HEADS), hidden_of(state))
    built = PrefixedTransformer(prefix, codes, tokens, vocab, *sizes, is_post_norm(state), SPECIAL)
    weights = blocks_of(state, "norm") | {
        "start": table[END],
        "table.weight": table[SPECIAL:rows],
        "prefix_table.weight": table[rows + SPECIAL :],
        "positions": positions_of(state, "embed_positions", tokens),
        "prefix_positions": positions_of(state, "embed_positions_1", prefix),
        "head.weight": special_last(head),
    }
    return fill(built, weights)
