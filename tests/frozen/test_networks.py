"""A new loss, critic, adversarial loss or kind of frozen network costs files alone, which checks and help find."""

import importlib
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.checks.recipe import check_recipe
from pipeline.code import Code
from pipeline.frozen.networks import FrozenNetworks, declared_input
from pipeline.images.reading import Images
from pipeline.recipes.describing import describe
from pipeline.recipes.schema import load
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.training.phase_parts import build_critic, build_losses

FILES = {
    "frozen/edge_filter.py": '''
"""Edges of images."""
from torch import nn
from pipeline.frozen.base import FrozenInput
from pipeline.validation import SettingError

class EdgeFilter(FrozenInput):
    """Differences of pixels, times `gain`."""
    def check(self):
        if self.arguments.gain <= 0:
            raise SettingError("gain", f" is {self.arguments.gain:g}; give a number above 0")
    def load(self, networks):
        network = nn.Conv2d(3, 1, (1, 2), bias=False)
        network.weight.data[:, :, :, 0], network.weight.data[:, :, :, 1] = -self.arguments.gain, self.arguments.gain
        return network
''',
    "losses/edges.py": '''
"""Distance between edges."""
from torch import nn
from pipeline.losses.base import Loss

class Edges(Loss):
    """`edges`: mean absolute difference of edges."""
    terms = ("edges",)
    extractor_kind = "edge_filter"
    def __init__(self, extractor: nn.Module, gain: float = 2.0):
        super().__init__()
        self.extractor = extractor
    def forward(self, images, rebuilt):
        return {"edges": (self.extractor(images) - self.extractor(rebuilt.images)).abs().mean()}
''',
    "critics/edge_critic.py": '''
"""A critic of edges."""
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from pipeline.critics.base import Critic
from pipeline.nn.unregistered import Unregistered

class EdgeCritic(Critic):
    """Judges the edges of an image."""
    extractor_kind = "edge_filter"
    @register_to_config
    def __init__(self, widths: list[int], gain: float = 1.0):
        super().__init__()
        self.scale = nn.Conv2d(widths[0], 1, 1)
    @classmethod
    def sizes_of(cls, extractor):
        return {"widths": [extractor.out_channels]}
    def judge_by(self, extractor):
        self.extractor = Unregistered(extractor)
        return self
    def forward(self, images):
        return self.scale(self.extractor.module(images))
''',
    "adversarial/wasserstein.py": '''
"""The Wasserstein loss of critics."""
from pipeline.adversarial.base import AdversarialLoss

class Wasserstein(AdversarialLoss):
    """`wasserstein`: -real, fake, and -fake."""
    def generator(self, fake):
        return -fake.mean()
    def critic(self, real, fake):
        return -real.mean(), fake.mean()
''',
}
PHASE = "tokenizer.phases.main"
SETTINGS = [
    f"{PHASE}.losses.edges={{kind: edges}}",
    f"{PHASE}.weights.edges=0.5",
    f"{PHASE}.adversary={{critic: {{kind: edge_critic}}, loss: wasserstein}}",
    f"{PHASE}.weights.adversarial=0.1",
    f"{PHASE}.loop.lr.critic=1e-3",
]


@pytest.fixture
def new_files(tmp_path, monkeypatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.lstrip())
        package = importlib.import_module(f"pipeline.{Path(name).parent}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / name.partition("/")[0])])


@pytest.mark.slow  # tests/test_extending.py adds a loss and its frozen input by the page that says how
def test_files_alone_add_a_loss_a_critic_and_what_they_are_given(new_files, tmp_path):
    recipe = load("digits", SETTINGS)
    check_recipe(recipe)
    networks = FrozenNetworks(recipe, Images(recipe.data, "train"), tmp_path, Accelerator(cpu=True))
    phase = recipe.tokenizer.phases["main"]
    loss, critic = build_losses(networks, phase)["edges"], build_critic(networks, phase, seed=1)
    ramp = torch.linspace(-1, 1, 9).expand(1, 3, 9, 9)  # each pixel exceeds the one before by 0.25
    edges = loss(ramp, TokenizerOutput(torch.zeros_like(ramp), Code(z=None, ids=None), {}))["edges"]
    torch.testing.assert_close(edges, torch.tensor(3 * 0.25 * 2.0))
    assert not any(parameter.requires_grad for parameter in loss.extractor.parameters())
    assert critic(ramp).shape == (1, 1, 9, 8) and list(dict(critic.named_parameters())) == [
        "scale.weight",
        "scale.bias",
    ]
    assert all(f"\n  {kind} " in describe() for kind in ("edges", "edge_critic", "wasserstein"))
    with pytest.raises(ValueError, match=f"^{PHASE}.losses.edges.gain is -1; give a number above 0"):
        check_recipe(load("digits", [*SETTINGS, f"{PHASE}.losses.edges.gain=-1"]))
    with pytest.raises(ValueError, match=f"^{PHASE}.losses.edges.extractor is determined by an earlier stage"):
        check_recipe(load("digits", [*SETTINGS, f"{PHASE}.losses.edges.extractor=1"]))


def test_a_loss_of_pixels_declares_none():
    assert declared_input(load("digits"), "losses", {"kind": "pixel"}) is None
    assert declared_input(load("digits"), "critics", {"kind": "patch"}) is None
