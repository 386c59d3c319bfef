"""The text encoder of a pipeline that was published without its weights: where it is named, and loading it."""

from pathlib import Path

from diffusers import DiffusionPipeline

from pipeline.components import build, classes_of, find
from pipeline.files.paths import given_path
from pipeline.files.writing import read_json
from pipeline.saved_folders import load_component
from pipeline.text_encoders.base import TextEncoder

FOLDERS = (".", "text_encoder", "encoder", "text/encoder")  # of an encoder, a pipeline, a stage encode_text, a run


def add_text_encoder(pipe: DiffusionPipeline, source: str | Path | None = None) -> None:
    """Give a pipeline that reads text an encoder: that of `source`, or where it has none the one that it names."""
    if source is not None and pipe.text_spec is None:
        raise ValueError("text_encoder: this generator reads no text; leave it out")
    if pipe.text_spec is not None and (source is not None or pipe.text_encoder is None):
        pipe.text_encoder = load_text_encoder(pipe, source)


def load_text_encoder(pipe: DiffusionPipeline, source: str | Path | None = None) -> TextEncoder:
    """The text encoder for `pipe`, frozen: that in a folder, or without `source` the one that `pipe.config.text` names.

    A folder is that of an encoder of ours, of a run, or of a pipeline that has one. Raises ValueError with one line
    where there is none, or where it makes other features than the network was trained on.
    """
    if source is not None:
        return load_encoder(source)
    node = pipe.config.text
    if node is None:
        raise ValueError("this pipeline has no text encoder, and names none; state text_encoder=FOLDER")
    if not find("text_encoders", node["kind"]).given_weights:
        raise ValueError(
            f"the text encoder of this pipeline, a {node['kind']}, was trained with it and is not in its folder; state"
            " text_encoder=FOLDER, of the run or of a pipeline that has it"
        )
    return build("text_encoders", node).requires_grad_(False).eval()


def load_encoder(source: str | Path) -> TextEncoder:
    """The text encoder in a folder, or in the folder of a run or of a pipeline; ValueError where there is none."""
    classes = {cls.__name__: cls for cls in classes_of("text_encoders")}
    for folder in (given_path(source) / inner for inner in FOLDERS):
        name = read_json(folder / "config.json").get("_class_name") if (folder / "config.json").is_file() else None
        if name in classes:
            return load_component(classes[name], folder).requires_grad_(False).eval()
    raise ValueError(f"text_encoder={source} holds no text encoder; name its folder, or that of a run or a pipeline")
