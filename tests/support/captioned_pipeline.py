"""A small pipeline whose parts read captions: those of a byte transformer, whose weights are drawn."""

from typing import Any

from pipeline import LatentPipeline
from pipeline.components import build
from pipeline.nn.conditions import text_arguments
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.text_encoders.byte_transformer import ByteTransformer
from pipeline.tokenizers.base import Tokenizer
from support.tiny_pipeline import NAMES, SAMPLING, make_network, make_pipeline, randomised

ENCODER = {"kind": "byte_transformer", "tokens": 12, "width": 8, "depth": 1, "heads": 2}
TOKENIZERS = {
    "tatitok": {"kind": "tatitok", "bottleneck": {"kind": "gaussian", "dim": 3}, "tokens": 4},
    "textok": {"kind": "textok", "bottleneck": {"kind": "gaussian", "dim": 3}, "tokens": 4},
}
WIDTHS = {"width": 16, "depth": 1, "heads": 2, "patch_size": 8}


def make_text_encoder() -> ByteTransformer:
    encoder = build("text_encoders", ENCODER)
    return randomised(encoder, 5).requires_grad_(False)


def reading_captions() -> dict[str, int]:
    """The arguments of parts that read the captions of this encoder, pooled vector apart."""
    arguments = text_arguments(make_text_encoder().spec)
    return {name: value for name, value in arguments.items() if name != "pooled_dim"}


def make_captioned_tokenizer(kind: str) -> Tokenizer:
    """Of 16 pixels, four tokens of three channels."""
    return randomised(build("tokenizers", TOKENIZERS[kind] | WIDTHS, image_size=16, **reading_captions()), 4)


def make_text_pipeline(num_classes: int = 0, **arguments: Any) -> LatentPipeline:
    """A pipeline whose network reads prompts, with or without classes."""
    network = make_network(num_classes, text_reading="cross_attention", **text_arguments(make_text_encoder().spec))
    given = {"network": network, "text_encoder": make_text_encoder(), "id2label": NAMES if num_classes else None}
    return make_pipeline(num_classes, **given | {"sampling": SAMPLING} | arguments)


def make_captioned_decoder(kind: str = "tatitok", **arguments: Any) -> LatentPipeline:
    """A pipeline of four classes whose tokenizer reads captions."""
    parts = {"tokenizer": make_captioned_tokenizer(kind), "network": make_network(grid=[4]), "id2label": NAMES}
    parts |= {"objective": FlowMatching(), "sampling": SAMPLING, "text_encoder": make_text_encoder()}
    pipe = LatentPipeline(**(parts | arguments))
    pipe.set_progress_bar_config(disable=True)
    return pipe
