"""SVG's autoencoder and its flow through the import of its state; a small DINOv3 stands in the frozen one's place.

Its features are the stored ones, as they are in the case; of the flow, a third noise that is multiplied by zero there
is none of ours. The dropout of the branch in training is left out in the case, and is not ours.
"""

import re
import tempfile

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Code
from pipeline.draws import GivenDraws
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.samplers.levels import ladder, shifted
from pipeline.tokenizers.base import TrainingInputs
from pipeline.tokenizers.representation import Representation

MATCHES = "ldm.models.dino_decoder.DinoDecoder"


class Given(nn.Module):
    """Frozen features that are given, of the images of a batch in their order."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.features[: len(images)]]


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer, images = imported(case), case.inputs["image"]
    sides = case.inputs["latents"].shape[2:]
    tokenizer.encoder = Given(grid(case.inputs["features"], *sides))
    branch = tokenizer.texture
    made, latent = branch.project(images), tokenizer.encode_map(images)
    draws = GivenDraws({"encoder.texture": case.inputs["token_noise_0"][:, None, None]})
    values = {
        "normalized_image": branch.normalise(images),
        "branch": made.mT,
        "matched": branch.match_moments(made, tokenizer.encoder(images)[0]).mT,
        "latent": latent,
        "reconstruction": tokenizer(images).images,
        "decoded": tokenizer.decode(Code(z=sequence(case.inputs["latents"])), grid=tuple(sides)),
        "latent_first_alone": tokenizer.encode_map(images[:1]),
    }
    z = tokenizer.train().encode_for_training(images, TrainingInputs(draws=draws))[1]
    tokenizer.eval()
    return values | {"latent_training": grid(z, *sides)} | flow(case, sequence(latent))


def imported(case: Case) -> Representation:
    """On a DINOv3 of the width of the case, which is replaced by the given features."""
    stated, frozen = case.meta["constructor"], case.meta["constructor"]["dino_width"]
    config = DINOv3ViTConfig(hidden_size=frozen, num_hidden_layers=1, num_attention_heads=1, intermediate_size=frozen)
    with tempfile.TemporaryDirectory() as folder:
        DINOv3ViTModel(config).save_pretrained(folder)
        matching = "channels" if stated["extra_vit_config"]["use_outnorm"] else "none"
        drop, heads = stated["extra_vit_config"]["mask_ratio"], stated["branch"]["heads"]
        return bare(case.imported("svg", start=folder, heads=heads, drop=drop, matching=matching)["tokenizer"])


class Negated(nn.Module):
    """The given prediction of data - noise as the velocity, noise - data."""

    def __init__(self, prediction: Tensor):
        super().__init__()
        self.prediction = prediction

    def forward(self, z: Tensor, time: Tensor, condition: object = None) -> Tensor:
        return -self.prediction


def flow(case: Case, z: Tensor) -> dict[str, Tensor]:
    """Time is 1 at the data there, where our noise level is 0: a shift of it is the inverse one of ours."""
    text = case.call("RectifiedFlow")
    shifts = [inverse(float(value)) for value in re.search(r"shifts: \(([^)]*)\)", text)[1].split(",")]
    points, steps = (int(re.search(pattern, text)[1]) for pattern in (r"linspace\(0, 1, (\d+)\)", r"(\d+) steps"))
    objective = FlowMatching(shift=inverse(float(re.search(r"timestep_shift (\S+)", text)[1].rstrip(";,"))))
    draws = GivenDraws({"time": 1 - case.inputs["flow_noise_1"], "noise": case.inputs["flow_noise_0"]})
    code, randomness = Code(z=z), objective.draw(Code(z=z), draws)
    network = Negated(case.inputs["flow_model_output"])
    values = {
        "flow_time": 1 - randomness.time,
        "flow_state": objective.denoiser_input(code, None, randomness)[0],
        "flow_mse": objective.per_image(network, code, None, randomness)["flow"],
        "flow_loss": objective.loss(network, code, None, randomness)["flow"],
    }
    for i, shift in enumerate(shifts):
        values[f"times_{i}"] = 1 - shifted(1 - torch.linspace(0, 1, points), shift)
        values[f"sampling_times_{i}"] = 1 - torch.tensor(ladder(steps, shift))
    return values


def inverse(shift: float) -> float:
    """The shift of noise levels that one of times is; none where that is not above 0."""
    return 1 / shift if shift > 0 else 1.0
