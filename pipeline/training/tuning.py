"""A network that was trained before, made ready to be tuned: its adapter, and what of it is trained."""

import json
from copy import deepcopy
from pathlib import Path

from pipeline.adapters import NEW_PARTS, save_low_rank
from pipeline.files.writing import write_tensors
from pipeline.networks.base import ARGUMENTS, Network
from pipeline.nn import lora
from pipeline.recipes.generator_training import GeneratorTraining, Start
from pipeline.recipes.loops import NEW


def tune(network: Network, part: GeneratorTraining) -> list[str]:
    """Put the recipe's adapter on a network, and freeze what is not trained; the names of its new parameters.

    With an adapter, and where the network's rate is 0 beside one of what is new, the new parameters alone are trained.
    """
    if (adapter := part.adapter) is not None:
        lora.adapt(network, network.adapted_layers(adapter.layers), adapter.rank, adapter.alpha)
    new_parts = () if part.start is None else part.start.new_parts
    matrices = {id(matrix) for matrix in lora.adapters(network)}
    parameters = dict(network.named_parameters())
    new = [name for name, one in parameters.items() if id(one) in matrices or network.is_of(name, new_parts)]
    if adapter is not None or NEW in part.loop.lr and part.loop.rate_of("network").peak == 0:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in new)
    return new


def save_tuned(network: Network, part: GeneratorTraining, class_names: list[str], out: Path) -> None:
    """Write the network as its plain class, its adapter merged into it, and that adapter alone."""
    merged(network).save_pretrained(out / "network")
    if part.adapter is not None:
        save_adapter(network, part.start, class_names, out / "adapter")


def save_adapter(network: Network, start: Start, class_names: list[str], folder: Path) -> None:
    """Write the adapter on a network, and what else is not as in the network that it started from."""
    save_low_rank(network, folder)
    if not (start.new_parts or start.resample):
        return
    changed = [name for part in (*start.new_parts, *start.resample) for name in ARGUMENTS[part]]
    described = {
        "reinitialise": start.new_parts,
        "resample": start.resample,
        "arguments": {name: network.config[name] for name in changed if name in network.config},
        "class_names": class_names if "labels" in start.reinitialise else None,
    }
    weights = network.state_dict()
    new = {name: weights[name].contiguous() for name in weights if network.is_of(name, start.new_parts)}
    write_tensors(folder / NEW_PARTS, new, {"format": "pt", "start": json.dumps(described)})


def merged(network: Network) -> Network:
    """A network of plain layers that computes the same; itself where it has no adapter."""
    if not lora.adapters(network):
        return network
    network = deepcopy(network)
    lora.merge(network)
    return network
