"""`sample FOLDER|HUB_ID`: images from a published pipeline."""

from pipeline.components import structure
from pipeline.files.writing import read_json
from pipeline.recipes.files import is_setting, parse_settings
from pipeline.runs.machine import accelerate, check_precision
from pipeline.sampling.from_folder import FolderSettings, sample_folder
from pipeline.sampling.many_images import PROMPTS, PROTOCOL


def sample(words: list[str]) -> None:
    """Sample the pipeline in a folder, or of the hub, into a folder of numbered images, and say where they are.

    A second word is the folder to write, as out=FOLDER. With prompts=geneval:FILE or dpg:FOLDER the images lie as the
    evaluator of GenEval or DPG-Bench reads them. The same command again continues where it stopped.
    """
    source, *rest = words
    places = [word for word in rest[:1] if not is_setting(word)]
    settings = parse_settings(rest[len(places) :]) | ({"out": places[0]} if places else {})
    check_precision(structure(FolderSettings, settings).precision)
    accelerator = accelerate()
    out = sample_folder(source, settings, accelerator)
    if accelerator.is_main_process:
        images = read_json(out / PROTOCOL)["images"]
        words = f", {PROMPTS}" if (out / PROMPTS).is_file() else ""
        print(f"{out}: {images} images, grid.png, samples.npz{words} and {PROTOCOL}")
