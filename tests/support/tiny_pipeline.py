"""A pipeline small enough for tests, a run's folders made of it, and one seed a generator."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from pipeline import LatentPipeline
from pipeline.components import structure
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import NOTE, Workspace
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

NAMES = {0: "zero", 1: "great white shark", 2: "crane, bird", 3: "crane, machine"}
SAMPLING = {"steps": 3, "guidance": {"scale": 2.0}}
MODEL = {
    "kind": "conv_autoencoder",
    "bottleneck": {"kind": "gaussian", "dim": 3},
    "width": 8,
    "multipliers": [1, 2, 2],
    "blocks": 1,
    "groups": 4,
}
NETWORK = {"kind": "diffusion_transformer", "depth": 2, "width": 32, "heads": 2}


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Every weight drawn, so that nothing that starts at zero hides a mistake."""
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return module.eval()


def make_tokenizer() -> ConvAutoencoder:
    tokenizer = ConvAutoencoder(16, **{name: value for name, value in MODEL.items() if name != "kind"})
    tokenizer.mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
    tokenizer.std.copy_(torch.tensor([1.7, 0.6, 1.1]))
    return randomised(tokenizer, 1)


def make_network(num_classes: int = 4, **arguments: Any) -> DiffusionTransformer:
    sizes = {name: value for name, value in NETWORK.items() if name != "kind"} | {"grid": [4, 4], "dim": 3}
    return randomised(DiffusionTransformer(**(sizes | {"num_classes": num_classes} | arguments)), 2)


def make_pipeline(num_classes: int = 4, **arguments: Any) -> LatentPipeline:
    """16 pixels, 4x4 tokens of 3 channels; four classes, or none."""
    labelled = {"id2label": NAMES, "sampling": SAMPLING} if num_classes else {"sampling": {"steps": 3}}
    parts = {"tokenizer": make_tokenizer(), "network": make_network(num_classes), "objective": FlowMatching()}
    pipe = LatentPipeline(**(parts | labelled | arguments))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


def pixels(pipe: LatentPipeline, labels: Any, seeds: Sequence[int], **settings: Any) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of these labels and seeds."""
    return pipe(labels, generator=generators(*seeds), output_type="pt", **settings).images


def fails(pipe: LatentPipeline, match: str, *arguments: Any, **settings: Any) -> None:
    """Assert that such a call is refused in one line."""
    with pytest.raises(ValueError, match=match) as error:
        pipe(*arguments, **settings)
    assert "\n" not in str(error.value)


def make_recipe(**sections: Any) -> Recipe:
    loop = {"steps": 5, "lr": {"network": 1e-3}}
    network = NETWORK
    values = {
        "name": "tiny",
        "data": {"source": {"kind": "digits"}, "size": 16},
        "tokenizer": {"model": MODEL},
        "generator": {"network": network, "objective": {"kind": "flow_matching"}, "weights": {"flow": 1}, "loop": loop},
        "sample": {"images": 7, "steps": 3, "guidance": 2.0, "batch": 3},
    }
    return structure(Recipe, values | sections)


def make_run(root: Path, num_classes: int = 4) -> Workspace:
    """A run whose stages before sampling are done, with a report of two numbers."""
    folders = {name: root / name for name in ("decoder", "generator", "report")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / NOTE).write_text(json.dumps({"hash": "0", "seconds": 1.5, "device": "cpu", "precision": "fp32"}))
    make_tokenizer().save_pretrained(folders["decoder"])
    make_network(num_classes).save_pretrained(folders["generator"] / "network")
    FlowMatching().save_pretrained(folders["generator"] / "objective")
    names = list(NAMES.values()) if num_classes else []
    (folders["generator"] / "class_names.json").write_text(json.dumps(names))
    protocol = {"images": "7 samples", "features": {"kind": "pixels"}}
    numbers = {
        "fd_pixels": {"title": "Fréchet distance, pixels", "value": 1.25, "held_out": 1.0, "protocol": protocol},
        "psnr": {"title": "PSNR", "value": 33.5, "unit": "dB", "protocol": {"images": "7 reconstructions"}},
    }
    (folders["report"] / "metrics.json").write_text(json.dumps(numbers))
    return Workspace(root, Accelerator(cpu=True))
