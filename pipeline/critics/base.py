"""What every critic promises."""

from abc import abstractmethod
from collections.abc import Sequence

from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from pipeline.components import Arguments


class Critic(ModelMixin, ConfigMixin):
    """Tells real images from rebuilt ones."""

    shows_layers: bool = False  # forward(images, True) gives the logits and a list of what its layers make
    of_the_run: tuple[str, ...] = ()  # arguments that may differ from a folder's that training starts from

    @classmethod
    def smallest(cls, arguments: Arguments) -> int:
        """The smallest side in pixels it can judge, known without building."""
        return 1

    @property
    def name(self) -> str:
        """What is added to the name of numbers on its logits, where these depend on what it judges by."""
        return ""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor | Sequence[Tensor]:
        """Logits of any shape [B, ...] for images [B, 3, H, W] in [-1, 1]; large means real.

        Several ones, as of several scales, count equally, however many logits each has.
        """
