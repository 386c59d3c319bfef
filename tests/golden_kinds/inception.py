"""The FID Inception, layer by layer, with weights that are a rule in place of a file of 95 MB."""

import zlib

import numpy as np
import torch
from torch import Tensor

from golden_kinds import Case
from pipeline.features.extractors import InceptionFeatures
from pipeline.nn.resize import resize_tensorflow1
from pipeline.teachers.inception import BLOCKS, SIZE, Inception

MATCHES = "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3"
LAYERS = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", *BLOCKS)


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    network, images = ruled(), case.inputs["image_uint8"]
    seen = watch(network, lambda: network(resize_tensorflow1(images, SIZE, SIZE)))
    rows = InceptionFeatures(network, sha256="").extract_all(images / 127.5 - 1)
    return seen | {
        "2048": rows["inception"],
        "logits_unbiased": rows["inception_logits"],
        "spatial": rows["inception_spatial"],
    }


def ruled() -> Inception:
    """Our network with the weights of `rule`."""
    network = Inception()
    network.load_state_dict({name: rule(name, value.shape) for name, value in network.state_dict().items()})
    return network.requires_grad_(False).eval()


def watch(network: torch.nn.Module, run) -> dict[str, Tensor]:
    """What every layer gives, as means over places [B, C] and at one place [B, C]."""
    found = {}

    def keep(name: str):
        def hook(module, inputs, output):
            found[f"{name}.mean"] = output.mean(dim=(2, 3))
            found[f"{name}.place"] = output[:, :, output.shape[2] // 3, output.shape[3] // 2].clone()

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in LAYERS]
    run()
    for hook in hooks:
        hook.remove()
    return found


def rule(name: str, shape: torch.Size) -> Tensor:
    """Values that are the same bits everywhere: splitmix64 of the name and the place, 24 bits of it, scaled."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    count, start = int(np.prod(shape)), np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    even = torch.from_numpy(((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / 2**24).view(shape)
    if len(shape) == 4:  # kernels, at the variance that keeps that of a ReLU's input
        return (2 * even - 1) * (6 / shape[1:].numel()) ** 0.5
    if name.endswith(("bn.weight", "running_var")):
        return even + 0.5
    return (even - 0.5) * (0.1 if name.startswith("fc") else 0.5)
