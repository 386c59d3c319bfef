"""Masked continuous tokens: what the loss sees, the steps of sampling, guidance, temperatures, heads and patches."""

import generating
import pytest
import torch
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import build
from pipeline.draws import ImageDraws, StepDraws
from pipeline.networks.masked_latent_transformer import MaskedLatentTransformer
from pipeline.objectives.masked_latent import MaskedLatent
from pipeline.samplers.guidance import Guidance

SIZES = {"depth": 2, "width": 16, "heads": 2, "buffer": 2, "head_depth": 1, "head_width": 16, "dropout": 0.0}
SPEC = LatentSpec((3, 4), 3)
HEADS = {
    "diffusion": {"kind": "gaussian_diffusion", "beta_schedule": "squaredcos_cap_v2"},
    "flow": {"kind": "flow_matching"},
}
FEW = {"head_steps": 3}


def network(objective: MaskedLatent, std: float = 0.15, **arguments) -> MaskedLatentTransformer:
    """Small, with every weight random."""
    sizes = SIZES | {"grid": list(SPEC.grid), "dim": SPEC.dim, "num_classes": 5, "attention_dropout": 0.0} | arguments
    model = MaskedLatentTransformer(outputs=objective.outputs, **sizes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def sampled(objective: MaskedLatent, model, seeds: list[int], labels: list[int], steps: int = 4, **more) -> Tensor:
    draws, condition = ImageDraws.from_seeds(seeds), Condition(labels=torch.tensor(labels))
    return generating.sample(objective, model, condition, SPEC, draws, steps, **FEW | more).z


@pytest.mark.parametrize("head", HEADS)
def test_an_image_does_not_depend_on_the_batch(head):
    objective = MaskedLatent(HEADS[head])
    model = network(objective)
    together = sampled(objective, model, [1, 2, 3], [0, 1, 2], guidance=Guidance(2.0, schedule="linear"))
    assert together.shape == (3, *SPEC.shape) and together.isfinite().all()
    for i in range(3):
        alone = sampled(objective, model, [i + 1], [i], guidance=Guidance(2.0, schedule="linear"))
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_what_is_masked_reaches_no_state():
    objective = MaskedLatent()
    model, order = network(objective), torch.rand(2, 12).argsort(dim=1)
    tokens, known = torch.randn(2, 12, 3), order[:, :4]
    before, changed = model.states(tokens, known), tokens.clone()
    changed.scatter_(1, order[:, 4:, None].expand(-1, -1, 3), torch.randn(2, 8, 3))
    assert torch.equal(model.states(changed, known), before)
    changed[0, known[0, 0]] += 1
    assert not torch.equal(model.states(changed, known)[0], before[0])


def test_the_loss_is_a_function_of_the_step_and_each_image_however_split():
    objective = MaskedLatent(copies=3)
    model, z, labels = network(objective, dropout=0.2), torch.randn(4, *SPEC.shape), torch.arange(4)

    def terms(rows: slice) -> dict[str, Tensor]:
        code, draws = Code(z=z[rows]), StepDraws(0, 5, rows, 4)
        return objective.loss(model, code, Condition(labels=labels[rows]), objective.draw(code, draws))

    whole, halves = terms(slice(0, 4)), [terms(slice(0, 2)), terms(slice(2, 4))]
    assert set(whole) == {"mse", "vb"}
    for name, value in whole.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)


def test_the_share_of_masked_tokens_follows_its_law():
    objective, code = MaskedLatent(), Code(z=torch.zeros(1, *SPEC.shape))
    rates = torch.tensor([objective.draw(code, StepDraws(0, i, slice(0, 1), 1)).rate for i in range(2000)])
    assert rates.min() >= 0.7 and rates.max() <= 1
    normal = 1 + 0.25 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    cut = normal[(normal >= 0.7) & (normal <= 1)]
    assert abs(rates.mean() - cut.mean()) < 0.005 and abs(rates.std() - cut.std()) < 0.005
    arccos = MaskedLatent(schedule="arccos")
    rates = torch.tensor([arccos.draw(code, StepDraws(0, i, slice(0, 1), 1)).rate for i in range(2000)])
    assert abs(rates.mean() - 2 / torch.pi) < 0.02


def test_every_token_is_settled_once_and_stays():
    objective = MaskedLatent()
    model, states = network(objective), []
    sampled(objective, model, [1], [0], steps=5, on_step=lambda step, rest, z: states.append(z.clone()))
    known = [(state != 0).all(dim=-1)[0] for state in states]
    assert len(states) == 5 and known[-1].all()
    for before, after, old, new in zip(known, known[1:], states, states[1:]):
        assert (after >= before).all() and after.sum() > before.sum()
        assert torch.equal(old[0, before], new[0, before])


def test_a_callback_changes_the_state_that_it_returns():
    objective = MaskedLatent()
    model = network(objective)
    doubled = sampled(objective, model, [1], [0], on_step=lambda step, rest, z: 2 * z if step == 3 else None)
    torch.testing.assert_close(doubled, 2 * sampled(objective, model, [1], [0]))


@pytest.mark.parametrize("head", HEADS)
def test_guidance_of_one_is_the_unguided_path_and_others_lead_away(head):
    objective = MaskedLatent(HEADS[head])
    model = network(objective, std=0.3)
    plain = sampled(objective, model, [1, 2], [0, 1])
    assert torch.equal(sampled(objective, model, [1, 2], [0, 1], guidance=Guidance(1.0, schedule="linear")), plain)
    guided = sampled(objective, model, [1, 2], [0, 1], guidance=Guidance(3.0))
    assert not torch.allclose(guided, plain, atol=1e-3)
    weak = sampled(objective, model, [1, 2], [0, 1], guidance=Guidance(3.0), weak=network(objective, std=0.2))
    assert not torch.allclose(weak, guided, atol=1e-3)
    same = sampled(objective, model, [1, 2], [0, 1], guidance=Guidance(3.0), weak=model)
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="guidance_rescale"):
        sampled(objective, model, [1], [0], guidance=Guidance(2.0, rescale=0.5))


def test_temperatures_touch_the_noise_that_they_are_of():
    diffusion, flow = MaskedLatent(HEADS["diffusion"]), MaskedLatent(HEADS["flow"])
    model = network(diffusion)
    colder = sampled(diffusion, model, [1], [0], temperature=0.0)
    assert not torch.equal(colder, sampled(diffusion, model, [1], [0]))
    model = network(flow)
    assert torch.equal(sampled(flow, model, [1], [0], temperature=0.0), sampled(flow, model, [1], [0]))
    colder = sampled(flow, model, [1, 2], [0, 0], start_temperature=0.0, steps=1)
    torch.testing.assert_close(colder[:1], colder[1:])  # no noise is left, and every token is settled at once


@pytest.mark.parametrize("preserve", [0.0, 0.5, 1.0])
def test_kept_and_preserved_tokens_are_those_of_the_original(preserve):
    objective, code = MaskedLatent(), Code(z=torch.randn(2, *SPEC.shape))
    model, condition = network(objective), Condition(labels=torch.tensor([0, 1]))
    kept = torch.zeros(2, 12, dtype=torch.bool)
    kept[0, :7], kept[1, 3] = True, True  # of a number that differs
    draws = ImageDraws.from_seeds([1, 2])
    arguments = {"kept": kept, "head_steps": 3, "guidance": Guidance(2.0)}
    made = generating.regenerate(objective, model, code, condition, preserve, draws, 4, **arguments)
    same = (made.z == code.z).all(dim=-1)
    assert torch.equal(made.z[kept], code.z[kept])
    assert (same.sum(dim=1) >= preserve * 12).all() and (preserve == 1) == bool(same.all())
    for i in range(2):
        one = slice(i, i + 1)
        alone = generating.regenerate(
            *(objective, model, code[one], condition[one], preserve, ImageDraws.from_seeds([i + 1]), 4),
            **arguments | {"kept": kept[one]},
        )
        torch.testing.assert_close(alone.z, made.z[one], atol=1e-4, rtol=1e-4)


def test_patches_are_tokens():
    objective = MaskedLatent()
    model = network(objective, grid=[4, 4], patch_size=2, num_classes=0)
    spec, draws = LatentSpec((4, 4), 3), ImageDraws.from_seeds([1])
    states = []
    made = generating.sample(
        objective, model, None, spec, draws, 4, on_step=lambda step, rest, z: states.append(z.clone()), **FEW
    )
    assert made.z.shape == (1, 16, 3)
    first = (states[0] != 0).all(dim=-1).view(4, 4)
    assert first.sum() == 4 and first.view(2, 2, 2, 2).transpose(1, 2).flatten(2).all(dim=-1).sum() == 1
    code = Code(z=torch.randn(1, 16, 3))
    terms = objective.loss(model, code, None, objective.draw(code, StepDraws(0, 0, slice(0, 1), 1)))
    assert all(value.isfinite() for value in terms.values())


def test_a_head_learns_two_modes():
    """A head of tokens that are -1 or 1 with probabilities 0.3 and 0.7 samples both of them, at their rates."""
    objective = MaskedLatent(HEADS["flow"])
    sizes = {"grid": [1], "dim": 1, "num_classes": 0, "depth": 1, "head_depth": 2, "head_width": 48}
    torch.manual_seed(0)
    model = MaskedLatentTransformer(**SIZES | {"attention_dropout": 0.0} | sizes)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(400):
        z = torch.where(torch.rand(64, 1, 1) < 0.3, -1.0, 1.0)
        draws = StepDraws(0, step, slice(0, 64), 64)
        objective.loss(model, Code(z=z), None, objective.draw(Code(z=z), draws))["flow"].backward()
        optimizer.step(), optimizer.zero_grad()
    draws = ImageDraws.from_seeds(list(range(500)))
    made = generating.sample(objective, model, None, LatentSpec((1,), 1), draws, 1, head_steps=20).z
    assert ((made.abs() - 1).abs() < 0.3).float().mean() > 0.85
    assert abs((made < 0).float().mean() - 0.3) < 0.08


def test_steps_heads_and_settings_that_do_not_fit_are_refused():
    objective = MaskedLatent()
    with pytest.raises(ValueError, match="13 sampling steps for 12 tokens"):
        generating.check_sampler(objective, 13, SPEC)
    with pytest.raises(ValueError, match="head_stepz"):
        objective.read_settings({"head_stepz": 3})
    with pytest.raises(ValueError, match="shift"):
        objective.read_settings({"shift": 3.0})
    assert MaskedLatent(HEADS["flow"]).read_settings({"shift": 3.0}).head.shift == 3.0
    with pytest.raises(ValueError, match="masked_token denoises no single tokens"):
        MaskedLatent({"kind": "masked_token"})
    with pytest.raises(ValueError, match="denoises no single tokens"):
        MaskedLatent({"kind": "flow_matching", "class_token": 4})
    with pytest.raises(ValueError, match="gaussian_diffusion has no argument 'beta'"):
        build("objectives", {"kind": "masked_latent", "head": {"kind": "gaussian_diffusion", "beta": 1}})
