"""The weak network of AutoGuidance: where it lies, and which ones fit a stronger network."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.components import find, kinds
from pipeline.files.writing import read_json
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.samplers.guidance import SHARED
from pipeline.saved_folders import load_component

MEANINGS = ("prediction", "path", "variance", "num_train_timesteps", "beta_start", "beta_end")  # of what it predicts


def network_folder(folder: Path) -> Path:
    """The network in a generator's, a pipeline's or its own folder; ValueError where there is none."""
    for candidate in (folder / "network", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise ValueError(f"sample.weak.folder: {folder} holds no network; name a run's generator/ or a pipeline's folder")


def check_weak_folder(folder: Path, objective: Objective) -> None:
    """ValueError unless the folder holds a network, whose objective, where it is told, predicts the same."""
    network_folder(folder)
    config_file = folder / "objective" / "scheduler_config.json"
    if not config_file.is_file():
        return
    other = read_json(config_file)
    if other["_class_name"] != type(objective).__name__:
        raise ValueError(
            f"sample.weak.folder: {folder} was trained by {other['_class_name']}, and predicts another thing"
        )
    for name in MEANINGS:
        if name in other and other[name] != objective.config.get(name):
            ours = objective.config.get(name)
            raise ValueError(
                f"sample.weak.folder: {folder} was trained with {name}={other[name]}, the recipe has {ours}"
            )


def check_weak_shape(folder: Path, network: Network) -> None:
    """ValueError unless the network in `folder` answers for the same codes and classes as `network`."""
    stored = read_json(network_folder(folder) / "config.json")
    for name, absent in SHARED.items():
        ours, theirs = network.config.get(name, absent), stored.get(name, absent)
        if ours != theirs:
            raise ValueError(f"sample.weak.folder: {folder} has {name}={theirs}, the recipe's network {ours}")


def load_weak(folder: Path) -> Network:
    """The network of `network_folder`."""
    folder_of_network = network_folder(folder)
    name = read_json(folder_of_network / "config.json")["_class_name"]
    classes = {cls.__name__: cls for cls in (find("networks", kind) for kind in kinds("networks"))}
    if name not in classes:
        raise ValueError(f"sample.weak.folder: {folder} holds a {name}, which is none of our networks")
    return load_component(classes[name], folder_of_network).eval()


def check_same_codes(weak: Path, generator: Path) -> None:
    """ValueError where the runs of two generators' folders show that they learned the codes of two tokenizers."""
    theirs, ours = (folder.parent / "latents" / "tokenizer" for folder in (weak, generator))
    if not (theirs.is_dir() and ours.is_dir()):
        return
    tensors, needed = stored_tensors(theirs), stored_tensors(ours)
    if tensors.keys() != needed.keys() or not all(alike(tensors[name], needed[name]) for name in needed):
        raise ValueError(
            f"sample.weak.folder: {weak} learned the codes of another tokenizer; train it with"
            f" tokenizer.start={generator.parent / 'tokenizer'} and tokenizer.phases=null"
        )


def alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
