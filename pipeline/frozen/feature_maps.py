"""Feature maps of a frozen network, which codes, hidden states or images are compared in."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.frozen.base import STAND_IN, FrozenInput
from pipeline.frozen.networks import FrozenNetworks
from pipeline.nn.convolution_stages import WIDTH, stage_channels, stem_and_stages
from pipeline.teachers.base import Tap
from pipeline.validation import SettingError
from pipeline.vision.backbone import check_layer, read_config, read_depth, read_features, read_kind


class FeatureMaps(FrozenInput):
    """The maps `layers`, else the one of `layer`, of the teacher, which reads images at `teacher_size`.

    Layers are those of `pipeline.teachers.vision_model`; a classifier's are its maps, fine to coarse.
    """

    @property
    def layers(self) -> list[int]:
        return list(self.arguments.get("layers") or [self.arguments.get("layer", -1)])

    @property
    def class_token(self) -> bool:
        """Whether the class token is among what is compared, which a transformer alone has."""
        return bool(self.arguments.get("class_token"))

    @property
    def projected(self) -> bool:
        """Whether patches are projected as the feature of a whole image is, which CLIP alone can."""
        return bool(self.arguments.get("projected"))

    @property
    def is_other_than_clip(self) -> bool:
        """Whether the weights are on this machine, and another model's."""
        return self.folder is not None and read_kind(self.folder) != "clip"

    def check(self) -> None:
        if self.projected and (self.layers != [-1] or self.teacher == STAND_IN or self.is_other_than_clip):
            raise SettingError("projected", " is of the last layer of a CLIP alone; leave it out")
        if self.teacher == STAND_IN:
            if self.class_token:
                raise SettingError("class_token", " is of a transformer, and a classifier has none; leave it out")
            count = stem_and_stages(self.recipe.data.size)["stages"] + 1
            for layer in self.layers:
                if not -count <= layer < count:
                    raise ValueError(f"layer {layer} is asked for; the classifier's are 0 to {count - 1}, or -1")
            return
        if self.folder is not None and (count := read_depth(self.folder)) is not None:
            for layer in self.layers:
                check_layer(layer, count, read_kind(self.folder))

    def width(self) -> int | None:
        if self.teacher == STAND_IN:
            return stage_channels(WIDTH, stem_and_stages(self.recipe.data.size)["stages"])[self.layers[0]]
        if self.folder is None:
            return None
        return read_features(self.folder)[1] if self.projected else read_config(self.folder).get("hidden_size")

    def load(self, networks: FrozenNetworks) -> Tap:
        if self.teacher == STAND_IN:
            return Tap(self.load_stand_in(networks), *self.layers)
        size, resize = self.arguments.get("teacher_size", "grid"), self.arguments.get("teacher_resize", "antialiased")
        options = {"size": size, "layers": self.layers, "resize": resize}
        if self.projected:
            options["readout"] = "projected"
        model = networks.vision_model(self.teacher, f"{self.name}.teacher", **options)
        if self.arguments.get("teacher_colours") == "unchanged":
            model.leave_colours()
        return Tap(model, *range(len(self.layers)), class_token=self.class_token)


class StoredFeatures(nn.Module):
    """A teacher whose features are stored, and which therefore reads no images."""

    def __init__(self, name: str, width: int):
        super().__init__()
        self.name, self.widths = name, (width,)

    def maps(self, images: Tensor) -> list[Tensor]:
        raise ValueError(f"of the teacher {self.name} features are stored; it reads no images")


def stored_features(described: Mapping[str, Any]) -> Tap:
    """What stands for a teacher whose features a store of codes holds, as its manifest describes them."""
    teacher = StoredFeatures(described["teacher"], described["width"])
    return Tap(teacher, class_token=described.get("class_token", False))
