"""The section `publish` of a recipe: what is written beside the pipeline's folder."""

from dataclasses import dataclass

from pipeline.ranges import RangedFields


@dataclass
class Publication(RangedFields):
    """What is written beside the pipeline's folder."""

    self_contained: bool = False  # also a folder that loads with diffusers alone, by trust_remote_code
    stock: bool = False  # also folders of stock diffusers classes, where the shapes allow
    license: str = "unknown"
    text_encoder: bool | str = True  # with its weights; false: without; or where others have it: a hub id, a folder
