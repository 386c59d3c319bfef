"""`loop.checkpointing` trains the same model, and keeps less: tokenizers against a critic, networks with dropout."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.code import Code, Condition
from pipeline.components import build
from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeBatch
from pipeline.recipes.building import build_tokenizer, seed_initial_weights
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.training.generation import Generation
from pipeline.training.loop import TrainingRun, train
from pipeline.training.reconstruction import Reconstruction

MAIN = "tokenizer.phases.main"
CODES = "{kind: gaussian, dim: 4}"
TOKENIZERS = {
    "maps": f"{{kind: conv_autoencoder, width: 8, multipliers: [1, 2], blocks: 1, groups: 4, bottleneck: {CODES}}}",
    "patches": f"{{kind: vit_autoencoder, width: 16, depth: 2, heads: 2, patch_size: 4, bottleneck: {CODES}}}",
}
NETWORKS = {
    "denoiser": ({"kind": "diffusion_transformer", "patch_size": 1, "condition_drop": 0.1}, {"kind": "flow_matching"}),
    "causal": ({"kind": "causal_transformer", "condition_drop": 0.1, "token_dropout": 0.1}, {"kind": "next_token"}),
    "masked": ({"kind": "bidirectional_transformer", "condition_drop": 0.1}, {"kind": "masked_token"}),
}


class Codes:
    """Random codes of four tokens."""

    def __init__(self, discrete: bool):
        generator = torch.Generator().manual_seed(0)
        self.z, self.ids = torch.randn(24, 4, 4, generator=generator), torch.randint(16, (24, 4), generator=generator)
        self.discrete = discrete

    def __len__(self) -> int:
        return 24

    def batch(self, indices: Tensor, seeds: Tensor) -> CodeBatch:
        code = Code(ids=self.ids[indices]) if self.discrete else Code(z=self.z[indices])
        return CodeBatch(code, condition=Condition(indices % 3))


class Kept:
    """Counts what is kept of forward passes, in bytes: storages of saved tensors that are no weights, each once."""

    def __init__(self, module: nn.Module):
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def trained_tokenizer(name: str, folder: Path, checkpointing: bool) -> tuple[Tensor, int]:
    recipe = load(
        "digits",
        [
            f"tokenizer.model={TOKENIZERS[name]}",
            f"{MAIN}.losses={{pixel: {{kind: pixel}}, perceptual: null}}",
            f"{MAIN}.adversary={{critic: {{kind: patch, width: 8, layers: 1, norm: batch}}, start: 1, adaptive: true}}",
            f"{MAIN}.weights={{pixel: 1, kl: 1.0e-3, adversarial: 0.3, perceptual: null}}",
            f"{MAIN}.loop={{steps: 3, batch: 8, ema: 0.5, lr: {{tokenizer: 1.0e-3, critic: 1.0e-3}}}}",
            f"{MAIN}.loop.checkpointing={str(checkpointing).lower()}",
        ],
    )
    phase = recipe.tokenizer.phases["main"]
    seed_initial_weights(0)
    critic, tokenizer = build("critics", phase.adversary.critic), build_tokenizer(recipe)
    task = Reconstruction(tokenizer, phase, {"pixel": build("losses", {"kind": "pixel"})}, critic)
    return outcome(task, Images(recipe.data, "train"), phase.loop, folder)


def trained_network(name: str, folder: Path, checkpointing: bool) -> tuple[Tensor, int]:
    shape, node = NETWORKS[name]
    objective = build("objectives", node)
    seed_initial_weights(0)
    sizes = {"width": 16, "depth": 3, "heads": 2, "grid": [2, 2], "dim": 4, "vocab": 16 if objective.discrete else 0}
    network = build(
        "networks",
        shape | {n: sizes.pop(n) for n in ("width", "depth", "heads")},
        num_classes=3,
        outputs=objective.outputs,
        codebooks=1,
        **sizes,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    task = Generation(network, objective, dict.fromkeys(objective.terms, 1.0))
    loop = Loop(3, {"network": 1e-2}, batch=8, ema=0.5, checkpointing=checkpointing)
    return outcome(task, Codes(objective.discrete), loop, folder)


def outcome(task, data, loop: Loop, folder: Path) -> tuple[Tensor, int]:
    """All weights after a training, and the bytes that its passes kept."""
    kept = Kept(nn.ModuleList(task.players.values()))
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        averages = train(task, data, TrainingRun(loop, folder, 0, Accelerator(cpu=True)))
    names = sorted(averages)
    return torch.cat([p.flatten() for name in names for p in averages[name].state_dict().values()]), kept.bytes


@pytest.mark.parametrize(
    "trained, name",
    [*((trained_tokenizer, name) for name in TOKENIZERS), *((trained_network, name) for name in NETWORKS)],
)
def test_checkpointing_trains_the_same_and_keeps_less(tmp_path, trained, name):
    plain, most = trained(name, tmp_path / "plain", False)
    again, least = trained(name, tmp_path / "again", True)
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)
    assert least < 0.9 * most
