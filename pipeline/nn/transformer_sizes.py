"""Sizes of an encoder and a decoder that are both transformers, the decoder's those of the encoder unless given."""

from pipeline.components import Arguments

Sizes = tuple[int, int, int]  # width, depth, heads


def both_sizes(arguments: Arguments) -> tuple[Sizes, Sizes]:
    """Width, depth and heads of the encoder, and those of the decoder."""
    names = ("width", "depth", "heads")
    return tuple(arguments[n] for n in names), tuple(arguments[f"decoder_{n}"] or arguments[n] for n in names)


def check_heads(kind: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{kind}: a width of {width} is not divisible by {heads} heads; choose a multiple")
