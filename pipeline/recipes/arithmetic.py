"""The arithmetic that each stage of a recipe computes in."""

from dataclasses import dataclass
from typing import Literal

from pipeline.ranges import RangedFields

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass
class StagePrecision(RangedFields):
    """The arithmetic of each stage, by one word.

    fp32: all in float32. tf32: float32, but the factors of matrix products and convolutions are rounded to TF32 on
    NVIDIA GPUs, and nothing changes elsewhere. bf16, fp16: networks by autocast, and what stays in float32 as in tf32;
    weights, optimiser, averages, and the arithmetic of losses stay in float32. Teachers, perceptual networks and the
    critic compute as the network that is trained beside them, but where a phase has `loss_precision: fp32`.
    """

    tokenizer: Precision = "fp32"
    joint: Precision = "fp32"
    latents: Precision = "fp32"
    generator: Precision = "fp32"
    posttrain: Precision = "fp32"  # its pairs, too
    sample: Precision = "fp32"  # the generator and the decoder
    evaluate: Precision = "fp32"
    text: Precision = "fp32"  # features of captions
