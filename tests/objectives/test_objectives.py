"""Objectives against closed forms: data that are Gaussian, whose velocity, noise and flow are known exactly."""

import math
from typing import get_args

import diffusers
import generating
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from pipeline.code import Code, LatentSpec
from pipeline.draws import GivenDraws, ImageDraws, StepDraws
from pipeline.objectives.flow_matching import FlowMatching, FlowRandomness
from pipeline.objectives.gaussian_diffusion import ChainRandomness, GaussianDiffusion
from pipeline.samplers.levels import settled_shift, shifted
from pipeline.samplers.noise_chain import NoiseChain, discretized_bits, evenly, gaussian_bits, strided
from pipeline.samplers.paths import PATHS
from pipeline.samplers.reverse_sde import DiffusionForm
from pipeline.solvers.base import solvers_of

MEAN, STD = 0.7, 0.5
SPEC = LatentSpec(grid=(2, 3), dim=4)
PREDICTIONS = ("velocity", "noise", "data", "score")
MULTISTEP = [("unipc", 2, 0.003), ("dpmpp_2m", 2, 0.005)]
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers under numpy 2


class Known(nn.Module):
    """The best prediction for data N(MEAN, STD^2) in every element; counts how often it is asked."""

    def __init__(self, share, prediction: str = "velocity", rates=None):
        super().__init__()
        self.share, self.rates, self.prediction, self.calls = share, rates, prediction, 0

    def forward(self, z: Tensor, time: Tensor, condition=None) -> Tensor:
        self.calls += 1
        alpha, sigma = self.share(time.double()[:, None, None])
        off = (z.double() - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        data, noise = MEAN + alpha * STD**2 * off, sigma * off
        found = {"noise": noise, "data": data, "score": -off}
        if self.rates:
            d_alpha, d_sigma = self.rates(time.double()[:, None, None])
            found["velocity"] = d_alpha * data + d_sigma * noise
        return found[self.prediction].to(z.dtype)


def flow_network(path: str = "linear", prediction: str = "velocity") -> Known:
    p = PATHS[path]
    return Known(lambda u: (p.alpha(u), p.sigma(u)), prediction, lambda u: (p.alpha_rate(u), p.sigma_rate(u)))


def noise_network(chain: NoiseChain) -> Known:
    """Between timesteps, where some schedulers ask, it interpolates the log of alpha-bar."""

    def share(u: Tensor) -> tuple[Tensor, Tensor]:
        place = (u * len(chain.signal)).clamp(0, len(chain.signal) - 1)
        low = place.floor().long()
        logs, part = chain.signal.log(), place - low
        signal = (logs[low] * (1 - part) + logs[(low + 1).clamp(max=len(logs) - 1)] * part).exp()
        return signal.sqrt(), (1 - signal).sqrt()

    return Known(share, "noise")


def many(count: int = 4000) -> ImageDraws:
    class AtOnce(ImageDraws):
        def normal(self, name, shape):
            return torch.randn(count, *shape, generator=self.generators[0])

        def uniform(self, name, shape=()):
            return torch.rand(count, *shape, generator=self.generators[0])

    return AtOnce([torch.Generator().manual_seed(1)])


def start(count: int = 3) -> GivenDraws:
    return GivenDraws({"start": torch.randn(count, *SPEC.shape, dtype=torch.float64)})


def exact(noise: Tensor, path: str = "linear") -> Tensor:
    """Where the flow takes noise: the quantile of N(MEAN, STD^2) that it is of the state's distribution at u = 1."""
    one = torch.ones((), dtype=torch.float64)
    alpha, sigma = PATHS[path].alpha(one), PATHS[path].sigma(one)
    return MEAN + STD * (noise - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()


class Told(nn.Module):
    """Answers what it was told, whatever it is asked."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, z, time, condition=None):
        return self.answer


# paths


@pytest.mark.parametrize("name", PATHS)
def test_rates_are_derivatives(name):
    path, u, h = PATHS[name], torch.linspace(0.05, 0.95, 7, dtype=torch.float64), 1e-6
    for share, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        torch.testing.assert_close((share(u + h) - share(u - h)) / (2 * h), rate(u), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(path.alpha_rate(u) / path.alpha(u), path.log_alpha_rate(u))
    forward = path.sigma(u) * path.sigma_rate(u) - path.log_alpha_rate(u) * path.sigma(u) ** 2
    torch.testing.assert_close(forward, path.diffusion(u))


@pytest.mark.parametrize("name", PATHS)
def test_a_path_leads_from_data_to_noise(name):
    path = PATHS[name]
    data, noise = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(path.state(data, noise, torch.tensor(0.0)), data)
    torch.testing.assert_close(path.state(data, noise, torch.tensor(1.0)), noise, atol=0.03, rtol=0)  # VP keeps 0.7 %


@pytest.mark.parametrize("name", PATHS)
def test_predictions_convert_into_each_other(name):
    path, u = PATHS[name], torch.tensor([0.03, 0.4, 0.98], dtype=torch.float64)[:, None, None]
    data, noise = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    z, velocity = path.state(data, noise, u), path.velocity(data, noise, u)
    torch.testing.assert_close(path.noise_from_velocity(velocity, z, u), noise)
    torch.testing.assert_close(path.data_from_velocity(velocity, z, u), data)
    torch.testing.assert_close(path.score_from_velocity(velocity, z, u), -noise / path.sigma(u))
    answers = {"velocity": velocity, "noise": noise, "data": data, "score": -noise / path.sigma(u)}
    for prediction, answer in answers.items():
        objective = FlowMatching(path=name, prediction=prediction)
        torch.testing.assert_close(objective.velocity(answer, z, u), velocity)


# losses


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_true_answer_has_no_loss_and_another_has(name, prediction):
    weighting = "likelihood" if prediction == "score" else "none"
    cosine = prediction == "velocity"
    objective = FlowMatching(path=name, prediction=prediction, weighting=weighting, cosine=cosine)
    code = Code(z=torch.randn(5, *SPEC.shape))
    draws = objective.draw(code, StepDraws(0, 0, slice(None), 5))
    u, noise, path = draws.time[:, None, None], draws.noise, PATHS[name]
    truth = {
        "velocity": path.velocity(code.z, noise, u),
        "noise": noise,
        "data": code.z,
        "score": -noise / path.sigma(u),
    }[prediction]
    terms = objective.loss(Told(truth), code, None, draws)
    assert tuple(terms) == objective.terms == ("flow", *["cosine"] * cosine)
    assert all(term < 1e-6 for term in terms.values())
    assert all(
        term > 1e-3 for term in objective.loss(Told(truth + torch.randn_like(truth)), code, None, draws).values()
    )


def test_draws_are_finite_shifted_and_on_the_right_side():
    code, draws = Code(z=torch.zeros(4000, 1, 1)), StepDraws(0, 0, slice(None), 4000)
    assert abs(FlowMatching().draw(code, draws).time.mean() - 0.5) < 0.02
    later = FlowMatching(shift=3.0).draw(code, draws).time
    assert abs(later.median() - 0.75) < 0.02  # 3 u / (1 + 2 u) at 1/2
    noisy = FlowMatching(time="logit_normal", logit_mean=1.0, logit_std=0.5).draw(code, draws).time
    assert abs(noisy.median() - torch.sigmoid(torch.tensor(1.0))) < 0.02
    steps = GaussianDiffusion().draw(code, draws).timestep
    assert steps.dtype == torch.int64 and steps.min() >= 0 and steps.max() <= 999 and len(steps.unique()) > 900


def test_no_level_is_above_the_largest_before_the_shift():
    """At 0.999 in RAE's release; at 0.6 the parts of both laws below it, each with its own median."""
    code, draws = Code(z=torch.zeros(4000, 1, 1)), StepDraws(0, 0, slice(None), 4000)
    even = FlowMatching(largest_time=0.6).draw(code, draws).time
    assert torch.equal(even, 0.6 * FlowMatching().draw(code, draws).time)
    law = {"time": "logit_normal", "logit_mean": -0.5, "logit_std": 1.5}
    cut = FlowMatching(largest_time=0.6, **law).draw(code, draws).time
    whole = FlowMatching(**law).draw(code, StepDraws(1, 0, slice(None), 4000)).time
    assert cut.max() < 0.6 and abs(cut.median() - whole[whole < 0.6].median()) < 0.02
    shifted_later = FlowMatching(largest_time=0.6, shift=3.0, **law).draw(code, draws).time
    torch.testing.assert_close(shifted_later, shifted(cut, 3.0))
    first = GivenDraws({"time": torch.zeros(1), "noise": torch.zeros(1, 1, 1)})
    assert FlowMatching(largest_time=0.6, **law).draw(Code(z=torch.zeros(1, 1, 1)), first).time == 0


PUBLISHED_SHIFTS = {"RecTok": ((16, 16), 128, 2.83), "RAE": ((16, 16), 768, 6.93)}


@pytest.mark.parametrize("grid, dim, shift", PUBLISHED_SHIFTS.values(), ids=PUBLISHED_SHIFTS)
def test_the_shift_follows_from_the_number_of_numbers(grid, dim, shift):
    spec = LatentSpec(grid=grid, dim=dim)
    found = settled_shift(spec.shape, 1.0, 4096)
    assert abs(found - shift) < 0.005 and abs(found - math.sqrt(spec.tokens * dim / 4096)) < 1e-12
    assert settled_shift((64, dim), 1.0, 1024) == pytest.approx(found)  # the same share of a smaller latent


def test_training_and_sampling_shift_by_the_same_rule():
    spec, objective = LatentSpec(grid=(2, 2), dim=8), FlowMatching(shift_base=8)
    code, draws = Code(z=torch.zeros(4000, 4, 8)), StepDraws(0, 0, slice(None), 4000)
    assert torch.equal(objective.draw(code, draws).time, FlowMatching(shift=2.0).draw(code, draws).time)
    draws = ImageDraws.from_seeds([3, 4])
    z = [
        generating.sample(FlowMatching(), flow_network(), None, spec, ImageDraws.from_seeds([3]), 5, **stated).z
        for stated in ({"shift_base": 8.0}, {"shift": 2.0}, {})
    ]
    assert torch.equal(z[0], z[1]) and not torch.allclose(z[0], z[2], atol=1e-4)
    ours = [
        generating.regenerate(
            FlowMatching(),
            flow_network(),
            Code(z=torch.zeros(1, 4, 8)),
            None,
            0.5,
            ImageDraws.from_seeds([3]),
            5,
            **stated,
        ).z
        for stated in ({"shift_base": 8.0}, {"shift": 2.0})
    ]
    assert torch.equal(*ours)


def test_a_shift_is_stated_once_and_away_from_the_data():
    small = LatentSpec(grid=(4, 4), dim=8)
    with pytest.raises(ValueError, match="leave one of them out"):
        FlowMatching(shift=2.0, shift_base=4096)
    with pytest.raises(ValueError, match="leave one of them out"):
        generating.check_sampler(FlowMatching(), 5, small, shift=2.0, shift_base=64.0)
    for check in (
        FlowMatching(shift_base=4096).check_codes,
        lambda spec: generating.check_sampler(FlowMatching(), 5, spec, shift_base=4096.0),
    ):
        with pytest.raises(ValueError, match="shift_base=16"):
            check(small)
    FlowMatching(shift_base=16).check_codes(small)


def test_shifts_of_the_two_directions_of_time_are_inverse():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    for shift in (0.3, 0.075, 0.4, 0.15):  # LightningDiT, VTP, SVG: in data time
        torch.testing.assert_close(1 - shifted(1 - u, shift), shifted(u, 1 / shift))


def test_the_law_of_times_can_end_at_a_step():
    code, objective = Code(z=torch.zeros(4000, 1, 1)), FlowMatching(time="logit_normal", logit_std=0.5, uniform_after=7)
    times = {step: objective.draw(code, StepDraws(0, step, slice(None), 4000)).time for step in (0, 6, 7, 8)}
    early = FlowMatching(time="logit_normal", logit_std=0.5)
    for step, time in times.items():
        other = early if step < 7 else FlowMatching()
        assert torch.equal(time, other.draw(code, StepDraws(0, step, slice(None), 4000)).time)
    assert times[6].std() < 0.15 < times[7].std()


def test_data_predicted_under_the_loss_of_velocity():
    """JiT: with v = (z - x) / max(u, 0.05), both true and predicted, the loss is the mean of (v - v')^2."""
    objective, code = FlowMatching(prediction="data", weighting="velocity"), Code(z=torch.randn(6, 5, 4))
    time, noise, wrong = torch.tensor([1.0, 0.7, 0.4, 0.06, 0.05, 0.01]), torch.randn(6, 5, 4), torch.randn(6, 5, 4)
    u = time[:, None, None]
    z = (1 - u) * code.z + u * noise
    true, predicted = ((z - data) / u.clamp(min=0.05) for data in (code.z, wrong))
    found = objective.loss(Told(wrong), code, None, FlowRandomness(time, noise))["flow"]
    torch.testing.assert_close(found, (true - predicted).square().mean())
    torch.testing.assert_close(true[:5], (noise - code.z)[:5], atol=1e-4, rtol=1e-4)  # and this is the velocity


def test_settings_that_contradict_each_other_are_refused():
    late = {"uniform_after": 5}
    for wrong in ({"weighting": "velocity"}, {"cosine": True, "prediction": "data"}, {"shift": 0.0}, late):
        with pytest.raises(ValueError) as error:
            FlowMatching(**wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="beta_start"):
        GaussianDiffusion(beta_start=0.1, beta_end=0.01)


def test_the_loss_falls_to_the_least_there_is():
    """E[(v - E[v | z])^2] of the linear path at u: Var(v) minus what z explains of it."""
    objective, code = FlowMatching(), Code(z=MEAN + STD * torch.randn(20000, 1, 1))
    time, noise = torch.full((20000,), 0.4), torch.randn(20000, 1, 1)
    found = objective.loss(flow_network(), code, None, FlowRandomness(time, noise))["flow"].item()
    explained = (0.4 - 0.6 * STD**2) ** 2 / (0.6**2 * STD**2 + 0.4**2)
    assert abs(found - (1 + STD**2 - explained)) < 0.03


# flow matching: sampling


@pytest.mark.parametrize("solver, order, limit", [("euler", 1, 0.03), ("heun", 2, 0.01), *MULTISTEP])
def test_solvers_converge_at_their_order(solver, order, limit):
    draws, errors = start(), []
    for intervals in (40, 80, 160):
        steps = 2 * intervals - 1 if solver == "heun" else intervals
        z = generating.sample(FlowMatching(), flow_network(), None, SPEC, draws, steps, solver=solver).z
        errors.append((z - exact(draws.given["start"])).pow(2).mean().sqrt().item())
    assert math.log2(errors[0] / errors[2]) / 2 > order - 0.4, errors
    assert errors[0] < limit, errors


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_on_every_path_reaches_the_data(name, prediction):
    draws, objective = start(), FlowMatching(path=name, prediction=prediction)
    network = flow_network(name, prediction)
    z = generating.sample(objective, network, None, SPEC, draws, 201, solver="heun").z
    torch.testing.assert_close(z, exact(draws.given["start"], name), atol=0.02, rtol=0)


@pytest.mark.parametrize("form", get_args(DiffusionForm))
@pytest.mark.parametrize("name", PATHS)
def test_stochastic_samples_have_the_datas_mean_and_spread(form, name):
    spec = LatentSpec(grid=(1,), dim=1)
    settings = {"solver": "sde", "diffusion": form, "diffusion_scale": 0.5, "last_step_size": 0.01}
    z = generating.sample(FlowMatching(path=name), flow_network(name), None, spec, many(), 150, **settings).z
    assert abs(z.mean() - MEAN) < 0.04 and abs(z.std() - STD) < 0.04


@pytest.mark.parametrize("last_step", ["mean", "euler", "tweedie"])
def test_the_stochastic_heun_solver_and_its_last_steps(last_step):
    spec = LatentSpec(grid=(1,), dim=1)
    settings = {"solver": "sde_heun", "last_step": last_step, "last_step_size": 0.02}
    z = generating.sample(FlowMatching(), flow_network(), None, spec, many(), 101, **settings).z
    assert abs(z.mean() - MEAN) < 0.04 and abs(z.std() - STD) < 0.04


@pytest.mark.parametrize("solver", solvers_of("flow"))
@pytest.mark.parametrize("steps", [2, 7, 8])
def test_steps_are_network_evaluations(solver, steps):
    network, seen = flow_network(), []
    generating.sample(
        FlowMatching(),
        network,
        None,
        SPEC,
        ImageDraws.from_seeds([1]),
        steps,
        on_step=lambda *a: seen.append(a[:2]),
        solver=solver,
    )
    assert network.calls == steps
    assert seen[-1] == (steps - 1, 0.0)
    levels = [level for _, level in seen]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_euler_is_the_diffusers_scheduler_to_the_bit(steps, shift):
    network, noise = flow_network(), torch.randn(2, *SPEC.shape)
    draws = GivenDraws({"start": noise, "scheduler": torch.rand(2)})
    ours = generating.sample(FlowMatching(), network, None, SPEC, draws, steps, shift=shift).z
    scheduler, z = FlowMatchEulerDiscreteScheduler(shift=shift), noise
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy())
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = network(z, scheduler.sigmas[i].expand(2))
        z = scheduler.step(velocity, timestep, z).prev_sample
    assert torch.equal(ours, z)
    swapped = FlowMatchEulerDiscreteScheduler(shift=shift)
    assert torch.equal(generating.sample(FlowMatching(), network, None, SPEC, draws, steps, scheduler=swapped).z, z)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_flow_can_be_read_above_the_level_of_data(solver):
    """RAE's release stops at 0.001 before the shift, after one evaluation less than its grid has points."""
    network, seen = flow_network(), []
    request = (FlowMatching(), network, None, SPEC, ImageDraws.from_seeds([1]), 7)
    settings = {"solver": solver, "shift": 4.0, "end": 0.001}
    generating.sample(*request, on_step=lambda *a: seen.append(a[1]), **settings)
    assert network.calls == 7 and seen[-1] == pytest.approx(4 * 0.001 / (1 + 3 * 0.001))
    with pytest.raises(ValueError, match="end"):
        generating.sample(*request, scheduler=FlowMatchEulerDiscreteScheduler(), end=0.001)


def test_on_step_may_change_the_state():
    z = generating.sample(
        FlowMatching(), flow_network(), None, SPEC, start(), 4, on_step=lambda i, u, z: torch.full_like(z, 3.0)
    ).z
    assert torch.equal(z, torch.full_like(z, 3.0))


def test_settings_of_the_sampler_are_declared_and_checked():
    for objective in (FlowMatching(), GaussianDiffusion()):
        own = objective.setting_names()
        assert "solver" in own and "scheduler" not in own and solvers_of(objective.solves)
        for solver in solvers_of(objective.solves):
            generating.check_sampler(objective, 20, SPEC, solver=solver)
    wrong = [
        (FlowMatching(), 0, {}),
        (FlowMatching(), 20, {"shift": -1.0}),
        (FlowMatching(), 1, {"solver": "sde"}),
        (FlowMatching(), 20, {"solver": "sde_heun", "last_step": "none"}),
        (FlowMatching(), 20, {"solver": "sde", "last_step_size": 1.5}),
        (FlowMatching(), 20, {"solver": "sde", "end": 0.001}),
        (FlowMatching(), 20, {"solver": "unipc", "end": 0.001}),
        (FlowMatching(), 20, {"end": 1.0}),
        (FlowMatching(path="trigonometric"), 20, {"solver": "unipc"}),
        (GaussianDiffusion(), 1001, {}),
        (GaussianDiffusion(), 0, {}),
        (GaussianDiffusion(), 600, {"spacing": "stride"}),
        (GaussianDiffusion(), 20, {"solver": "ddpm", "eta": 0.5}),
    ]
    for objective, steps, settings in wrong:
        with pytest.raises(ValueError) as error:
            generating.check_sampler(objective, steps, SPEC, **settings)
        assert "\n" not in str(error.value)


# Gaussian diffusion


def test_the_posterior_and_the_marginal_make_the_marginal_before():
    chain, data = GaussianDiffusion().chain, 1.3
    for t in (1, 500, 999):
        c_data, c_state = chain.posterior_of_data[t], chain.posterior_of_state[t]
        mean = c_data * data + c_state * chain.alpha[t] * data
        variance = chain.posterior_variance[t] + c_state**2 * (1 - chain.signal[t])
        torch.testing.assert_close(mean, chain.alpha[t - 1] * data)
        torch.testing.assert_close(variance, 1 - chain.signal[t - 1])


def test_a_spaced_chain_keeps_the_signal_of_its_timesteps():
    chain = GaussianDiffusion().chain
    for spacing in ("even", "stride"):
        spaced = chain.spaced(50, spacing)
        assert len(spaced.timesteps) == 50
        torch.testing.assert_close(spaced.signal, chain.signal[spaced.timesteps])
    torch.testing.assert_close(chain.spaced(1000).betas, chain.betas)
    assert evenly(1000, 10).tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert strided(1000, 30).tolist() == list(range(0, 1000, 34))


def test_conversions_of_the_chain_are_inverse():
    chain, t = GaussianDiffusion().chain, torch.tensor([0, 400, 999])
    data, noise = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    z = chain.noised(data, noise, t)
    torch.testing.assert_close(chain.data_from_noise(noise, z, t), data)
    torch.testing.assert_close(chain.noise_from_data(data, z, t), noise)
    torch.testing.assert_close(chain.noised(data, noise, 400)[1], z[1])


def test_bits_of_gaussians_and_of_bins():
    a, b = torch.distributions.Normal(0.3, 0.5), torch.distributions.Normal(-0.2, 1.5)
    stated = gaussian_bits(a.loc, 2 * a.scale.log(), b.loc, 2 * b.scale.log())
    torch.testing.assert_close(stated, torch.distributions.kl_divergence(a, b) / math.log(2))
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    mean, log_variance = torch.tensor(0.2, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    assert abs(torch.exp2(-discretized_bits(bins, mean, log_variance)).sum() - 1) < 1e-3


def test_a_model_that_is_the_posterior_costs_no_bits_and_the_bound_trains_the_variance_alone():
    objective = GaussianDiffusion()
    code = Code(z=torch.randn(4, *SPEC.shape))
    draws = ChainRandomness(torch.tensor([1, 300, 600, 999]), torch.randn(4, *SPEC.shape))
    output = torch.cat([draws.noise, torch.full(draws.noise.shape, -1.0)], dim=-1).requires_grad_()  # share 0
    terms = objective.loss(Told(output), code, None, draws)
    assert tuple(terms) == objective.terms == ("mse", "vb")
    assert terms["mse"] == 0 and abs(terms["vb"]) < 1e-4
    wider = torch.cat([draws.noise + 0.1, torch.ones(draws.noise.shape)], dim=-1).requires_grad_()
    bound = objective.loss(Told(wider), code, None, draws)["vb"]
    assert bound > 1e-3
    bound.backward()
    assert torch.equal(wider.grad[..., :4], torch.zeros_like(code.z)) and wider.grad[..., 4:].abs().sum() > 0


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("settings", [{"solver": "ddpm"}, {"solver": "ddim"}, {"solver": "ddim", "eta": 1.0}])
def test_samples_of_the_chain_have_the_datas_mean_and_spread(variance, settings):
    objective, spec = GaussianDiffusion(variance=variance), LatentSpec(grid=(1,), dim=1)
    network = noise_network(objective.chain)
    z = generating.sample(objective, network, None, spec, many(), 200, **settings).z
    assert network.calls == 200
    assert abs(z.mean() - MEAN) < 0.04 and abs(z.std() - STD) < 0.04
    assert objective.terms == ("mse",) and objective.outputs == 1


def test_ddim_with_eta_1_is_ddpm():
    objective = GaussianDiffusion(variance="fixed_small")
    network, draws = noise_network(objective.chain), [ImageDraws.from_seeds([1, 2]) for _ in range(2)]
    ddpm = generating.sample(objective, network, None, SPEC, draws[0], 30)
    ddim = generating.sample(objective, network, None, SPEC, draws[1], 30, solver="ddim", eta=1.0)
    torch.testing.assert_close(ddim.z, ddpm.z, atol=1e-4, rtol=1e-4)


def test_clipping_holds_the_expected_data():
    objective = GaussianDiffusion(variance="fixed_small")
    z = torch.full((1, 6, 4), 5.0)
    *_, data = objective.reverse(objective.chain, torch.zeros_like(z), z, 500, clip=True)
    assert torch.equal(data, torch.ones_like(z))
    assert (
        generating.sample(
            objective, noise_network(objective.chain), None, SPEC, ImageDraws.from_seeds([3]), 10, clip=True
        ).z.max()
        <= 1
    )


# what both promise


def pairs():
    diffusion = GaussianDiffusion(variance="fixed_small")
    return [(FlowMatching(), flow_network()), (diffusion, noise_network(diffusion.chain))]


@pytest.mark.parametrize("objective, network", pairs(), ids=["flow", "diffusion"])
def test_a_batch_is_its_images_one_by_one(objective, network):
    for settings in [{"solver": solver} for solver in solvers_of(objective.solves)]:
        together = generating.sample(objective, network, None, SPEC, ImageDraws.from_seeds([4, 5, 6]), 7, **settings).z
        alone = [
            generating.sample(objective, network, None, SPEC, ImageDraws.from_seeds([s]), 7, **settings).z
            for s in (4, 5, 6)
        ]
        assert torch.equal(together, torch.cat(alone)), settings


@pytest.mark.parametrize("objective, network", pairs(), ids=["flow", "diffusion"])
def test_regenerate_keeps_all_or_nothing_at_its_ends(objective, network):
    code = Code(z=MEAN + STD * torch.randn(64, *SPEC.shape))
    seeds = list(range(64))
    kept = generating.regenerate(objective, network, code, None, 1.0, ImageDraws.from_seeds(seeds), 9)
    assert torch.equal(kept.z, code.z)
    free = generating.sample(objective, network, None, SPEC, ImageDraws.from_seeds(seeds), 9)
    assert torch.equal(
        generating.regenerate(objective, network, code, None, 0.0, ImageDraws.from_seeds(seeds), 9).z, free.z
    )
    distances = []
    for preserve in (0.4, 0.7, 0.9, 0.99):
        z = generating.regenerate(objective, network, code, None, preserve, ImageDraws.from_seeds(seeds), 9).z
        distances.append((z - code.z).abs().mean().item())
    assert distances == sorted(distances, reverse=True) and 0 < distances[-1] < 0.05
    with pytest.raises(ValueError, match="preserve"):
        generating.regenerate(objective, network, code, None, 1.5, ImageDraws.from_seeds(seeds), 9)


def test_regenerating_data_gives_data_and_counts_its_steps():
    for objective, network in pairs():
        code = Code(z=MEAN + STD * torch.randn(4000, 1, 1))
        z = generating.regenerate(objective, network, code, None, 0.4, many(), 60).z
        assert abs(z.mean() - MEAN) < 0.04 and abs(z.std() - STD) < 0.05
        assert network.calls == 60
    diffusion, network = pairs()[1]
    generating.regenerate(diffusion, network, code, None, 0.99, many(), 60)
    assert network.calls == 10  # of 1,000 timesteps only ten are left


@pytest.mark.parametrize("objective", [FlowMatching(path="trigonometric", shift=2.0), GaussianDiffusion(beta_end=0.03)])
def test_an_objective_survives_its_folder(objective, tmp_path):
    objective.save_pretrained(tmp_path)
    again = type(objective).from_pretrained(tmp_path)
    stated = {name: value for name, value in objective.config.items() if not name.startswith("_")}
    assert {name: again.config[name] for name in stated} == stated


# diffusers' schedulers in the solver's place

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW_FITTING = {
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
    "UniPCMultistepScheduler": FLOW,
    "DPMSolverMultistepScheduler": FLOW,
    "DPMSolverSinglestepScheduler": FLOW,
}
FLOW_WRONG = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EDMEulerScheduler": {},
    "DEISMultistepScheduler": FLOW,
    "UniPCMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "epsilon"},
    "FlowMatchEulerDiscreteScheduler": {"use_dynamic_shifting": True},
}
BETAS = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
NOISE_FITTING = {
    "DDPMScheduler": BETAS | {"clip_sample": False},
    "DDIMScheduler": BETAS | {"clip_sample": False},
    "PNDMScheduler": BETAS | {"skip_prk_steps": True},
    "UniPCMultistepScheduler": BETAS,
    "DPMSolverMultistepScheduler": BETAS,
    "DPMSolverSinglestepScheduler": BETAS,
    "DEISMultistepScheduler": BETAS,
    "EulerDiscreteScheduler": BETAS,
    "EulerAncestralDiscreteScheduler": BETAS,
    "HeunDiscreteScheduler": BETAS,
    "LMSDiscreteScheduler": BETAS,
}
NOISE_WRONG = {
    "FlowMatchEulerDiscreteScheduler": {},
    "EDMEulerScheduler": {},
    "DDPMScheduler": BETAS,  # clips
    "DDIMScheduler": BETAS | {"clip_sample": False, "beta_schedule": "scaled_linear"},
    "PNDMScheduler": BETAS | {"prediction_type": "v_prediction"},
    "UniPCMultistepScheduler": BETAS | {"beta_end": 0.012},
    "DPMSolverMultistepScheduler": BETAS | {"num_train_timesteps": 500},
    "EulerDiscreteScheduler": BETAS | {"prediction_type": "sample"},
    "DPMSolverSinglestepScheduler": BETAS | {"thresholding": True},
}


@pytest.mark.parametrize("name", FLOW_FITTING)
def test_schedulers_that_fit_a_flow(name):
    scheduler = getattr(diffusers, name)(**FLOW_FITTING[name])
    network, noise = flow_network(), torch.randn(3, *SPEC.shape)
    draws = GivenDraws({"start": noise, "scheduler": torch.rand(3)})
    z = generating.sample(FlowMatching(), network, None, SPEC, draws, 41, scheduler=scheduler).z
    assert network.calls == 41
    torch.testing.assert_close(z, exact(noise).to(z.dtype), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="linear path"):
        FlowMatching(path="trigonometric").check_scheduler(scheduler)


@pytest.mark.parametrize("name", NOISE_FITTING)
def test_schedulers_that_fit_a_diffusion(name):
    scheduler = getattr(diffusers, name)(**NOISE_FITTING[name])
    objective = GaussianDiffusion(variance="fixed_small")
    network = noise_network(objective.chain)
    draws = ImageDraws.from_seeds(list(range(200)))
    z = generating.sample(objective, network, None, SPEC, draws, 60, scheduler=scheduler).z
    assert 55 <= network.calls <= 60
    assert abs(z.mean() - MEAN) < 0.05 and abs(z.std() - STD) < 0.08  # 60 stochastic steps are few
    again = generating.sample(objective, network, None, SPEC, ImageDraws.from_seeds([7]), 60, scheduler=scheduler).z
    torch.testing.assert_close(again, z[7:8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective, wrong", [(FlowMatching(), FLOW_WRONG), (GaussianDiffusion(), NOISE_WRONG)])
def test_schedulers_that_would_give_wrong_images_are_refused(objective, wrong):
    for name, settings in wrong.items():
        scheduler = getattr(diffusers, name)(**settings)
        with pytest.raises(ValueError, match=name) as error:
            objective.check_scheduler(scheduler)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=name):
            generating.sample(objective, flow_network(), None, SPEC, start(), 4, scheduler=scheduler)
