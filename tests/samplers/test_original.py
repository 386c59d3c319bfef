"""Tokens of a code that are known: the network sees them noised to every level, and they come out as they were."""

import generating
import pytest
import torch
from torch import Tensor, nn

from pipeline.code import Code, LatentSpec
from pipeline.draws import GivenDraws, ImageDraws
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.objectives.gaussian_diffusion import GaussianDiffusion
from pipeline.samplers.original import Original
from pipeline.samplers.paths import PATHS
from pipeline.samplers.request import SamplingRequest
from pipeline.solvers.base import solvers_of

TOKENS, CHANNELS = 6, 3
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers under numpy 2


class Watched(nn.Module):
    """Answers with its input turned around, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked: list[tuple[float, Tensor]] = []

    def forward(self, z: Tensor, time: Tensor, condition=None) -> Tensor:
        self.asked.append((time[0].item(), z.clone()))
        return torch.tanh(z.flip(1))


def given() -> tuple[Code, Tensor, GivenDraws]:
    generator = torch.Generator().manual_seed(1)
    z, noise = torch.randn(2, 2, TOKENS, CHANNELS, generator=generator)
    kept = torch.tensor([[1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    return Code(z=z), kept, GivenDraws({"start": noise}, ImageDraws.from_seeds([1, 2]))


@pytest.mark.parametrize("preserve", [0.0, 0.4])
@pytest.mark.parametrize("solver", solvers_of("flow"))
@pytest.mark.parametrize("path", PATHS)
def test_a_flow_sees_known_tokens_on_their_path(path, solver, preserve):
    objective, network, (code, kept, draws) = FlowMatching(path=path), Watched(), given()
    if path != "linear" and solvers_of("flow")[solver].linear_only:
        return
    arguments = (objective, network, code, None, preserve, draws, 6)
    found = generating.regenerate(*arguments, kept=kept, solver=solver).z
    assert torch.equal(found[kept], code.z[kept]) and len(network.asked) == 6
    for u, z in network.asked:
        on_path = PATHS[path].state(code.z, draws.given["start"], torch.tensor(u, dtype=torch.float64))
        assert torch.allclose(z[kept], on_path[kept], atol=1e-6)
    assert not torch.allclose(found[~kept], generating.regenerate(*arguments, solver=solver).z[~kept], atol=1e-3)


@pytest.mark.parametrize("solver", solvers_of("noise_chain"))
def test_a_chain_sees_known_tokens_noised_to_the_timestep(solver):
    objective, network, (code, kept, draws) = GaussianDiffusion(variance="fixed_small"), Watched(), given()
    found = generating.regenerate(objective, network, code, None, 0.25, draws, 6, kept=kept, solver=solver).z
    assert torch.equal(found[kept], code.z[kept]) and len(network.asked) == 6
    for u, z in network.asked:
        noised = objective.chain.noised(code.z, draws.given["start"], round(u * 1000))
        assert torch.allclose(z[kept], noised[kept], atol=1e-6)


@pytest.mark.parametrize("objective", [FlowMatching(), GaussianDiffusion(variance="fixed_small")])
def test_a_code_that_is_kept_whole_asks_nothing(objective):
    code, kept, draws = given()
    found = generating.regenerate(objective, Watched(), code, None, 0.0, draws, 6, kept=torch.ones_like(kept))
    assert torch.equal(found.z, code.z) and found.z is not code.z
    network, spec = Watched(), LatentSpec((TOKENS,), CHANNELS)
    free = generating.sample(objective, network, None, spec, given()[2], 6).z
    none = generating.regenerate(objective, network, code, None, 0.0, given()[2], 6, kept=torch.zeros_like(kept))
    assert torch.equal(none.z, free)


def test_what_is_preserved_is_a_fraction():
    with pytest.raises(ValueError, match="preserve=1.5 is a fraction"):
        Original(given()[0], 1.5)


def test_known_tokens_move_along_their_path_between_the_steps():
    objective, seen, (code, kept, draws) = FlowMatching(), [], given()
    spec = LatentSpec((TOKENS,), CHANNELS)
    request = SamplingRequest(Watched(), None, spec, draws, 4, on_step=lambda *step: seen.append(step))
    objective.regenerate(request, Original(code, 0.2, kept))
    for _, u, z in seen:
        assert torch.allclose(z[kept], ((1 - u) * code.z + u * draws.given["start"])[kept], atol=1e-6)
