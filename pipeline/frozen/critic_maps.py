"""Feature maps of a frozen network, which a critic judges by: DINO's where its weights are, else a stand-in's."""

from pipeline.frozen.base import STAND_IN
from pipeline.frozen.feature_maps import FeatureMaps
from pipeline.frozen.networks import FrozenNetworks
from pipeline.teachers.base import Teacher
from pipeline.teachers.vision_model import approximate_gelu
from pipeline.validation import SettingError


class CriticMaps(FeatureMaps):
    """The maps `layers` of the teacher with its class token read out; all maps of a classifier."""

    auto = "dino_small"

    @property
    def layers(self) -> list[int]:
        layers = self.arguments.get("layers")
        return [-1] if layers is None or self.teacher == STAND_IN else list(layers)

    @property
    def class_token(self) -> bool:
        """Not as such: the critic's argument of this name says whether patches have it added, where there is one."""
        return False

    def check(self) -> None:
        if self.arguments.get("teacher") == STAND_IN and self.arguments.get("layers") is not None:
            raise SettingError(
                "layers",
                " is for a transformer; of a classifier all maps are judged: leave it out",
            )
        super().check()

    def load(self, networks: FrozenNetworks) -> Teacher:
        if self.teacher == STAND_IN:
            return self.load_stand_in(networks)
        place = f"{self.name}.teacher"
        layers = self.layers
        if self.arguments.get("layers") is None:
            layers = quarters(networks.depth(self.teacher, place))
        size, resize = (self.arguments.get(f"teacher_{name}") for name in ("size", "resize"))
        readout = "class_token" if self.arguments.get("class_token", True) else "patches"
        options = {"size": size, "layers": layers, "readout": readout, "resize": resize or "antialiased"}
        teacher = networks.vision_model(self.teacher, place, **options)
        if self.arguments.get("teacher_gelu") == "tanh":
            approximate_gelu(teacher)
        return teacher


def quarters(depth: int | None) -> list[int]:
    """The first block's input and each quarter's output; the last map of a model without blocks."""
    return [-1] if depth is None else [depth * i // 4 for i in range(5)]
