"""The section `weights` of a recipe: where published weights are, and whether anything may stand in for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.ranges import RangedFields
from pipeline.recipes.field_metadata import ONLY_SPEED


@dataclass
class Weights(RangedFields):
    """Published weights that cannot be bundled: by name a file, a folder, or for folders a model of the hub.

    What is null is looked for in $TESSERA_WEIGHTS and in the hub's cache.
    """

    require: bool = field(default=False, metadata=ONLY_SPEED)  # what is missing is an error, and nothing stands in
    vgg16: str | None = None  # file; with lpips_vgg the perceptual loss and distance
    lpips_vgg: str | None = None  # file
    convnext_small: str | None = None  # file, for the loss logit_distance
    inception: str | None = None  # file, for FID
    inception_torch_fidelity: str | None = None  # file, of the same bytes
    dinov2_small: str | None = None  # folder, as all that follow
    dinov2_base: str | None = None
    dinov2_large: str | None = None
    clip_base: str | None = None
    clip_large: str | None = None
    clip_large_336: str | None = None
    dinov3_small: str | None = None
    dinov3_base: str | None = None
    dinov3_large: str | None = None
    mae_large: str | None = None
    siglip_base: str | None = None
    dino_small: str | None = None
    dino_small_8: str | None = None

    @property
    def files(self) -> Mapping[str, str]:
        """What the recipe states, by name, as `pipeline.vision.weights` takes it."""
        return {name: value for name, value in vars(self).items() if isinstance(value, str)}
