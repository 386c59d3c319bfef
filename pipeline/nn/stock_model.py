"""A model of ours as one of diffusers' own classes, for other programs."""

from dataclasses import dataclass

from diffusers import ModelMixin


@dataclass(frozen=True)
class StockModel:
    """The same function by a class of diffusers, and what there is to know of it."""

    model: ModelMixin
    note: str  # a sentence or more: in which scale it works, and what its class does otherwise
