"""`sample FOLDER|HUB_ID`: images from a published pipeline."""

from pipeline.components import structure
from pipeline.recipes.files import parse_settings
from pipeline.runs.machine import accelerate, check_precision
from pipeline.sampling.many_images import PROTOCOL, FolderSettings, sample_folder


def sample(words: list[str]) -> None:
    """Sample the pipeline in a folder, or of the hub, into a folder of numbered images, and say where they are.

    The same command again continues where it stopped.
    """
    source, *overrides = words
    settings = parse_settings(overrides)
    check_precision(structure(FolderSettings, settings).precision)
    accelerator = accelerate()
    out = sample_folder(source, settings, accelerator)
    if accelerator.is_main_process:
        print(f"{out}: {len(list(out.glob('[0-9]*.png')))} images, grid.png, samples.npz and {PROTOCOL}")
