"""Files of low-rank adapters, as diffusers and peft know them: written, and added to a network's weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.components import Arguments, conform_arguments
from pipeline.files.paths import given_path
from pipeline.files.writing import write_tensors
from pipeline.networks.base import Network
from pipeline.nn.lora import low_rank_layers
from pipeline.samplers.guidance import check_same_codes
from pipeline.stored_weights import check_numbers

LOW_RANK = "pytorch_lora_weights.safetensors"
NEW_PARTS = "new_parts.safetensors"  # beside it, where more than its low-rank changes differs
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # [rank, inputs] and [outputs, rank]
METADATA = "lora_adapter_metadata"  # of the file: peft's settings as JSON, their names after a prefix
PREFIXES = ("network.", "transformer.", "")  # the component's name in a pipeline, before that of a layer
UNKNOWN = ("alpha_pattern", "use_rslora", "use_dora", "lora_bias")  # settings of peft's that change what is added


def save_low_rank(module: nn.Module, folder: Path) -> None:
    """Write the low-rank changes in `module` to `folder`, in the layout of diffusers' `save_lora_adapter`."""
    layers, tensors = dict(low_rank_layers(module)), {}
    for name, layer in layers.items():
        for suffix, matrix in ((DOWN, layer.lora_down), (UP, layer.lora_up)):
            tensors[f"{PREFIXES[0]}{name}{suffix}"] = matrix.detach().cpu().contiguous()
    one = next(iter(layers.values()))
    rank = len(one.lora_down)
    settings = {"r": rank, "lora_alpha": one.scale * rank, "target_modules": list(layers)}
    described = json.dumps({f"{PREFIXES[0]}{name}": value for name, value in settings.items()})
    write_tensors(folder / LOW_RANK, tensors, {"format": "pt", METADATA: described})


def load_adapter(network: Network, folder: str | Path, scale: float = 1.0) -> tuple[Network, list[str] | None]:
    """A network with the adapter in `folder` merged into its weights, `scale` times, and the names of new classes.

    It is `network` itself, unless the adapter came with parts of another size: labels, or positions. The names are
    None where the classes stay. ValueError with one line where the adapter is of another network, or cannot be read.
    """
    path, names = given_path(folder), None
    if not (path / LOW_RANK).is_file():
        raise ValueError(
            f"{folder} holds no {LOW_RANK}; name the folder of an adapter, such as a run's generator/adapter"
        )
    if (path / NEW_PARTS).is_file():
        tensors, metadata = read_file(path / NEW_PARTS)
        described = json.loads(metadata.get("start", "{}"))
        network, names = replace_parts(network, tensors, described, path), described.get("class_names")
    add_low_rank(network, path / LOW_RANK, scale)
    return network, names


def replace_parts(network: Network, tensors: Mapping[str, Tensor], described: Mapping[str, Any], path: Path) -> Network:
    """A network of the arguments that are `described` beside those of `network`, with new parts of these `tensors`."""
    cls, node = type(network), {"kind": type(network).__name__} | dict(Arguments.from_config(network))
    node |= described["arguments"]
    check_numbers(node)
    new = cls(**conform_arguments(cls, node, (), str(path / NEW_PARTS)))
    new.begin_from(network, described["reinitialise"], described["resample"])
    weights = new.state_dict()
    for name, tensor in tensors.items():
        check_shape(path / NEW_PARTS, name, weights.get(name), tensor.shape)
    new.load_state_dict(weights | dict(tensors))
    return new.to(network.device, network.dtype).train(network.training)


@torch.no_grad()
def add_low_rank(network: Network, file: Path, scale: float = 1.0) -> None:
    """Add scale alpha / rank B A of every layer in an adapter's file to the weights of `network`.

    Alpha is the rank where the file does not say. ValueError, before anything is changed, where it is of another
    network, or changes more than that.
    """
    tensors, metadata = read_file(file)
    prefix = next(prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors))
    settings = {name.removeprefix(prefix): value for name, value in json.loads(metadata.get(METADATA, "{}")).items()}
    if unknown := [name for name in UNKNOWN if settings.get(name)]:
        raise ValueError(f"{file} was made with {unknown[0]}, which cannot be merged here; load it by peft")
    names = [name.removeprefix(prefix).removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    if len(tensors) != 2 * len(names) or not names:
        raise ValueError(f"{file} is no adapter of low rank: it holds more than pairs of lora_A and lora_B, or none")
    modules, changes = dict(network.named_modules()), {}
    for name in names:
        down, up = tensors[f"{prefix}{name}{DOWN}"], tensors.get(f"{prefix}{name}{UP}")
        layer = modules.get(name)
        if up is None or not isinstance(layer, nn.Linear):
            raise ValueError(
                f"{file} changes {name}, and this network has no such layer; take the network it was made of"
            )
        check_shape(file, name, layer.weight, (up.shape[0], down.shape[1]))
        alpha = float(settings.get("lora_alpha", len(down)))
        changes[name] = scale * alpha / len(down) * up.float() @ down.float()
    for name, change in changes.items():
        modules[name].weight += change.to(modules[name].weight)


def check_shape(file: Path, name: str, weight: Tensor | None, shape: tuple[int, ...]) -> None:
    """ValueError unless the network has a weight of this name and shape."""
    if weight is None or tuple(weight.shape) != tuple(shape):
        has = "no such weight" if weight is None else f"one of {list(weight.shape)}"
        raise ValueError(f"{file} is of another network: {name} is {list(shape)}, and this one has {has}")


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; ValueError where it is damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}); get it again") from None


class AdapterLoading:
    """The part of a pipeline that takes adapters."""

    def load_lora_weights(self, folder: str | Path, scale: float = 1.0) -> None:
        """Merge the adapter in `folder` into the network's weights, for good, `scale` times; peft is not needed.

        It may bring classes of its own, which are the pipeline's from then on. ValueError with one line where it is of
        another network.
        """
        network, names = load_adapter(self.network, folder, scale)
        if network is not self.network:
            check_same_codes(self.tokenizer, network)
            self.register_modules(network=network)
        if names is not None:
            network.class_names = {label: str(name) for label, name in enumerate(names)}
            self.register_to_config(id2label=network.class_names)
