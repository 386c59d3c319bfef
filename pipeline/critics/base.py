"""What every critic promises."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.ranges import RangedArguments


class Critic(RangedArguments, ModelMixin, ConfigMixin):
    """Tells real images from rebuilt ones."""

    shows_layers: bool = False  # forward(images, True) gives the logits and a list of its layers' outputs
    extractor_kind: str | None = None  # a file of pipeline/frozen/, by whose network it judges
    run_arguments: tuple[str, ...] = ()  # may differ from those of a folder that training starts from

    @classmethod
    def smallest(cls, arguments: Arguments) -> int:
        """The smallest side in pixels it can judge, known without building."""
        return 1

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        """What it computes over all images of a batch together, and so, with `loop.accumulate`, of a micro-batch."""
        return ("the critic's batch norms",) if cls.judges_batches(arguments) else ()

    @classmethod
    def judges_batches(cls, arguments: Arguments) -> bool:
        """Whether a verdict depends on the other images of the batch, so that real and rebuilt ones pass apart."""
        return False

    @classmethod
    def sizes_of(cls, extractor: nn.Module) -> dict[str, Any]:
        """Constructor arguments that the frozen network determines, of a critic that declares one."""
        return {}

    def judge_by(self, extractor: nn.Module) -> "Critic":
        """This critic, judging by the frozen network's features from now on."""
        raise ValueError(f"a {type(self).__name__} judges images themselves and takes no frozen network")

    @property
    def name(self) -> str:
        """What is added to the name of numbers on its logits, where these depend on a frozen network."""
        return ""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor | Sequence[Tensor]:
        """Logits of any shape [B, ...] for images [B, C, H, W] in [-1, 1]; large means real.

        Several ones, as of several scales, count equally, however many logits each has.
        """
