"""Made the case beside it: torch-fidelity's Inception with the weights that golden_kinds.inception states.

    pip download --no-deps torch-fidelity==0.4.0 && unzip torch_fidelity-0.4.0-py3-none-any.whl -d DIR
    PYTHONPATH=DIR:tests:. python tests/golden/inception/make.py

torch-fidelity is no test dependency: it asks for torchvision, which beside the CPU build of torch breaks the import of
diffusers. Its Inception needs none of it, so the package's own __init__ is passed over.
"""

import importlib
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path

import torch
from golden_kinds.inception import LAYERS, MATCHES, rule, watch
from safetensors.torch import save_file

HERE, VERSION = Path(__file__).parent, "0.4.0"
FEATURES = ["2048", "logits_unbiased"]


def published() -> torch.nn.Module:
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(importlib.util.find_spec("torch_fidelity").submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    shapes = {name: value.shape for name, value in shaped(module).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({name: rule(name, shape) for name, shape in shapes.items()}, path)
        return module.FeatureExtractorInceptionV3("inception", FEATURES, str(path))


def shaped(module: types.ModuleType) -> dict[str, torch.Tensor]:
    """The state of an extractor that could not be built, since it wants a file: of its parts, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / "none.pth", {}
        torch.save({}, path)
        cls = module.FeatureExtractorInceptionV3
        load = cls.load_state_dict
        cls.load_state_dict = lambda self, state: kept.update(self.state_dict())
        cls("inception", FEATURES, str(path))
        cls.load_state_dict = load
        return kept


@torch.no_grad()
def main() -> None:
    network, spatial = published(), []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: spatial.append(output))
    image = torch.randint(0, 256, (2, 3, 41, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    image[1] = torch.arange(56, dtype=torch.uint8).mul(4).expand(3, 41, 56)
    rows: dict[str, torch.Tensor] = {}
    found = watch(network, lambda: rows.update(zip(FEATURES, network(image))))
    rows["spatial"] = spatial[0].permute(0, 2, 3, 1)[..., :7].flatten(1)
    tensors = {"input.image_uint8": image} | {f"output.{name}": value for name, value in (found | rows).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, HERE / "io.safetensors")
    described = {name: {"shape": list(value.shape), "dtype": str(value.dtype)[6:]} for name, value in tensors.items()}
    (HERE / "meta.json").write_text(json.dumps(meta(described), indent=1) + "\n")
    print({name: (round(value.float().std().item(), 4), list(value.shape)) for name, value in rows.items()})


def meta(tensors: dict) -> dict:
    source = {
        "repository": "https://github.com/toshas/torch-fidelity",
        "version": VERSION,
        "license": "Apache-2.0",
        "paper": "High-fidelity performance metrics for generative models in PyTorch (software)",
    }
    layers = [f"{name}.{part}" for name in LAYERS for part in ("mean", "place")]
    text = (
        "The whole path from uint8 pixels: resize as in TensorFlow 1, (x - 128) / 128, the network. `2048` and"
        " `logits_unbiased` are its own outputs; `spatial` are the first 7 channels of Mixed_6d.branch1x1, which is"
        " mixed_6/conv of the original graph, at 17 x 17 places, channels last. Of every layer the mean over places and"
        " the value at the place (height // 3, width // 2)."
    )
    return {
        "name": "inception",
        "source": source,
        "made_by": "make.py beside this file",
        "class": MATCHES,
        "constructor": {"features_list": FEATURES},
        "mode": "eval mode, float32, CPU, no gradient",
        "state": None,
        "state_rule": "golden_kinds.inception.rule of every name and shape",
        "io": {"file": "io.safetensors", "tensors": tensors},
        "calls": [
            {
                "call": "forward",
                "inputs": ["image_uint8"],
                "outputs": [*FEATURES, "spatial", *layers],
                "description": text,
            }
        ],
        "tolerance": {"rule": "max|a - b| <= value * max(1, max|b|)", "value": 2e-5},
        "exact": [],
    }


if __name__ == "__main__":
    main()
