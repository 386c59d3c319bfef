"""Class features of another network, brought to the width of a code by a tokenizer's layer."""

from abc import ABCMeta, abstractmethod
from dataclasses import replace
from typing import Any

from torch import Tensor


class ProjectsClassFeatures(metaclass=ABCMeta):
    """A tokenizer with a layer from its encoder's width to its code's, to be named before the base that it extends."""

    @abstractmethod
    def projection(self, features: Tensor) -> Tensor:
        """Features [B, width] through the last layer before the bottleneck, to [B, neck.inputs].

        The width is `capabilities().projection_width`.
        """

    def forward(self, *inputs: Any, class_features: Tensor | None = None, **options: Any) -> Any:
        """As the base's; `class_features` [B, width] of the same images come back at the code's width, [B, neck.dim].

        They are projected in here so that the wrapper that averages gradients over processes sees it.
        """
        rebuilt = super().forward(*inputs, **options)
        if class_features is None:
            return rebuilt
        projected = self.projection(class_features)[:, : self.neck.dim]  # where the bottleneck reads more: its mean
        return replace(rebuilt, class_features=projected)
