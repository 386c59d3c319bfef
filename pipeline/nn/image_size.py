"""Sizes of images as settings state them, one number for a square or [height, width], and what divides them."""

from collections.abc import Sequence

Sides = tuple[int, int]  # height and width
ImageShape = tuple[int, int, int]  # channels, height and width


def sides_of(size: int | Sequence[int]) -> Sides:
    """Height and width; one number is both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def size_text(size: int | Sequence[int]) -> str:
    """`64` for a square, and `48x64` for a height of 48 and a width of 64."""
    height, width = sides_of(size)
    return f"{height}" if height == width else f"{height}x{width}"


def size_setting(sides: Sequence[int]) -> str:
    """As a setting on a command line: `64`, or `[48,64]`."""
    return f"{sides[0]}" if sides[0] == sides[1] else f"[{sides[0]},{sides[1]}]"


def divide(size: int | Sequence[int], by: int, what: str) -> Sides:
    """Both sides over `by`; ValueError that names `what` divides them where one leaves a remainder."""
    height, width = sides_of(size)
    if height % by or width % by:
        raise ValueError(f"images of {size_text(size)} pixels do not divide by {what}")
    return height // by, width // by
