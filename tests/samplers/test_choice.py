"""How an id is chosen from logits, how ids enter and leave a network, and which entries dropout leaves."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.draws import GivenDraws, ImageDraws, StepDraws, scramble
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.tokens import TokenEmbedding, TokenHead
from pipeline.samplers.choice import Choice, invert

SHARES = torch.tensor([0.1, 0.4, 0.2, 0.3])
EVEN = (torch.arange(10_000) + 0.5) / 10_000  # uniform numbers without chance: shares come out to 1e-4


def shares(choice: Choice) -> list[float]:
    """How often each of the four ids is chosen."""
    ids = choice(SHARES.log().expand(len(EVEN), -1), EVEN)
    return (torch.bincount(ids, minlength=4) / len(EVEN)).tolist()


@pytest.mark.parametrize(
    "choice, expected",
    [
        (Choice(), [0.1, 0.4, 0.2, 0.3]),
        (Choice(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares of the shares
        (Choice(temperature=0.0), [0, 1, 0, 0]),
        (Choice(top_k=1), [0, 1, 0, 0]),
        (Choice(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Choice(top_k=4), [0.1, 0.4, 0.2, 0.3]),
        (Choice(top_p=0.4), [0, 1, 0, 0]),
        (Choice(top_p=0.41), [0, 4 / 7, 0, 3 / 7]),
        (Choice(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Choice(top_p=0.95), [0.1, 0.4, 0.2, 0.3]),
        (Choice(top_k=3, top_p=0.45), [0, 4 / 7, 0, 3 / 7]),  # of the three, the likeliest has 4/9
        (Choice(temperature=0.5, top_k=2), [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_ids_are_chosen_by_their_shares(choice, expected):
    assert shares(choice) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("choice", [Choice(), Choice(top_k=3), Choice(top_p=0.95), Choice(0.7, 3, 0.9)])
def test_a_choice_is_a_function_of_its_own_number(choice):
    logits, uniform = torch.randn(5, 6, 9), torch.rand(5, 6)
    together = choice(logits, uniform)
    assert together.shape == (5, 6) and together.dtype == torch.int64
    alone = torch.stack([choice(logits[i], uniform[i]) for i in range(5)])
    assert torch.equal(together, alone)


def test_the_edges_of_the_uniform_numbers_stay_inside():
    logits, edges = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]]), torch.tensor([0.0, 1 - 2**-24, 1.0])
    for choice in (Choice(), Choice(top_k=3), Choice(top_p=0.99)):
        assert set(choice(logits.expand(3, -1), edges).tolist()) <= {1, 2}  # never an id without a share
    assert invert(torch.tensor([0.0, 0.25, 0.0, 0.75]), torch.tensor([0.0, 0.2499, 0.25, 0.9])).tolist() == [1, 1, 3, 3]
    assert invert(torch.tensor([0.0, 5.0, 15.0]), torch.tensor(0.3)).item() == 2  # the sum need not be one


def test_many_ids_in_half_precision_are_chosen_in_float32():
    logits = torch.zeros(2000, 16_384, dtype=torch.bfloat16)
    ids = Choice()(logits, (torch.arange(2000) + 0.5) / 2000)
    assert (ids - (torch.arange(2000) + 0.5) / 2000 * 16_384).abs().max() < 2  # bf16 sums would stop at 256 ids


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -0.1}, "^temperature is -0.1; give 0 or more$"),
        ({"top_k": 9}, "^top_k is 9, and there are 8 ids; give at most 8, or 0 for all$"),
        ({"top_k": -1}, "^top_k is -1; give 0 or more$"),
        ({"top_p": 0.0}, "^top_p is 0; give a fraction, above 0 and at most 1$"),
        ({"top_p": 1.1}, "^top_p is 1.1; give a fraction"),
    ],
)
def test_settings_out_of_range_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        Choice(**settings).validate(8)
    Choice(top_k=8).validate(8)


# ids in a network


def test_a_token_is_the_sum_of_a_row_a_codebook():
    embedding = TokenEmbedding(vocab=5, codebooks=3, width=4, mask=True)
    ids = torch.tensor([[[0, 4, 5], [5, 5, 5]]])  # 5 stands for an id that is not known
    rows = [embedding.tables[k].weight[ids[0, 0, k]] for k in range(3)]
    assert torch.allclose(embedding(ids)[0, 0], torch.stack(rows).sum(0))
    assert [len(table.weight) for table in TokenEmbedding(5, 2, 4).tables] == [5, 5]


def head(codebooks: int) -> TokenHead:
    made = TokenHead(vocab=7, codebooks=codebooks, width=8)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def test_a_single_codebook_has_a_linear_head():
    made, h = head(1), torch.randn(2, 3, 8)
    assert [name for name, _ in made.named_parameters()] == ["outputs.0.weight"]
    assert torch.equal(made(h, torch.zeros(2, 3, 1, dtype=torch.int64))[:, :, 0], h @ made.outputs[0].weight.T)


def test_each_codebook_is_told_those_before_it_and_no_other():
    made, h, ids = head(3), torch.randn(2, 3, 8), torch.randint(7, (2, 3, 3))
    logits = made(h, ids)
    assert logits.shape == (2, 3, 3, 7)
    for k in range(3):
        other = ids.clone()
        other[..., k] = (other[..., k] + 1) % 7
        changed = (made(h, other) - logits).abs().amax(dim=(0, 1, 3)) > 1e-6
        assert changed.tolist() == [j > k for j in range(3)]


def test_choosing_codebook_by_codebook_is_teacher_forcing_of_what_was_chosen():
    made, h, offered = head(3), torch.randn(2, 3, 8), []

    def likeliest(logits: torch.Tensor, codebook: int) -> torch.Tensor:
        assert codebook == len(offered)
        offered.append(logits)
        return logits.argmax(-1)

    ids = made.choose(h, likeliest)
    assert ids.shape == (2, 3, 3)
    assert torch.allclose(torch.stack(offered, dim=2), made(h, ids), atol=1e-6)


def test_a_head_learns_codebooks_that_depend_on_each_other():
    """Two ids that are equal, each as likely as the other: independent logits could not do better than log 2 twice."""
    made = TokenHead(vocab=2, codebooks=2, width=8)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    ids = torch.arange(64)[:, None].remainder(2)[..., None].expand(64, 1, 2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(made(torch.ones(64, 1, 8), ids).flatten(0, 2), ids.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() == pytest.approx(math.log(2) / 2, abs=0.02)


# dropout


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_dropout_leaves_the_right_share_everywhere(share):
    kept = StepDraws(3, 5, slice(0, 64), 64).keep_mask("layer", (32, 48), share)
    assert kept.shape == (64, 32, 48) and kept.dtype == torch.bool
    left_out = 1 - kept.double()
    assert abs(left_out.mean() - share) < 0.005  # three standard errors at one half
    for axes in ((0, 1), (0, 2), (1, 2)):  # no row, place or channel is preferred
        assert (left_out.mean(dim=axes) - share).abs().max() < 0.06


def test_masks_are_the_same_rows_for_any_split_over_processes():
    whole = StepDraws(0, 9, slice(0, 12), 12).keep_mask("layer", (5, 4), 0.4)
    for parts in ([12], [6, 6], [4, 4, 4], [1] * 12):
        ends = torch.tensor(parts).cumsum(0).tolist()
        rows = [StepDraws(0, 9, slice(end - n, end), 12).keep_mask("layer", (5, 4), 0.4) for n, end in zip(parts, ends)]
        assert torch.equal(torch.cat(rows), whole)


def test_masks_differ_by_seed_step_name_and_place():
    def kept(seed: int = 0, step: int = 0, name: str = "a") -> torch.Tensor:
        return StepDraws(seed, step, slice(0, 4), 4).keep_mask(name, (4096,), 0.5)

    masks = [kept(), kept(seed=1), kept(step=1), kept(name="b"), kept().roll(1, 0)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one == other).double().mean() - 0.5) < 0.03  # 8 standard errors are 0.03
    bits = kept()[0].double()
    assert abs((bits[1:] == bits[:-1]).double().mean() - 0.5) < 0.05


def test_scrambling_is_splitmix64():
    values = torch.arange(2**16) * 2**45 + 77
    z = values.numpy().view(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    assert torch.equal(scramble(values.clone()), torch.from_numpy(z.view(np.int64)))


def test_the_four_entries_of_a_hash_are_independent():
    kept = StepDraws(3, 5, slice(0, 16), 16).keep_mask("layer", (4 * 4096,), 0.5).view(-1, 4).double()
    together = (kept - kept.mean(0)).T @ (kept - kept.mean(0)) / len(kept)
    torch.testing.assert_close(together, torch.eye(4).double() / 4, atol=0.006, rtol=0)  # 6 standard errors


def test_other_draws_keep_the_right_share_too():
    assert abs(ImageDraws.from_seeds([1, 2]).keep_mask("a", (5000,), 0.3).double().mean() - 0.7) < 0.03
    given = GivenDraws({"a": torch.tensor([[0.2, 0.3, 0.4]])})
    assert given.keep_mask("a", (3,), 0.3).tolist() == [[False, True, True]]


def test_dropout_keeps_the_mean_and_is_nothing_without_a_mask():
    x, draws = torch.ones(8, 64, 32), StepDraws(0, 0, slice(0, 8), 8)
    found = apply_dropout(x, draws.keep_mask("a", (64, 32), 0.25), 0.25)
    assert set(found.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(found.mean() - 1) < 0.02
    assert apply_dropout(x, None, 0.25) is x


@pytest.mark.parametrize("choice", [Choice(), Choice(0.5), Choice(top_k=3), Choice(top_p=0.9), Choice(0.0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_ids_are_of_the_codebook_whatever_the_logits(choice, bad):
    logits = torch.randn(40, 4)
    logits[::2, 1], logits[1::4] = bad, bad
    ids = choice(logits, torch.linspace(0, 1, 40))
    assert ((ids >= 0) & (ids < 4)).all()


@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 2e-38, 1e-30, 1e-6])
def test_a_temperature_near_zero_takes_the_likeliest_id(temperature):
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0], [-1e4, 1e4, 0.0, 9e3]])
    for choice in (Choice(temperature), Choice(temperature, top_k=3), Choice(temperature, top_p=0.9)):
        choice.validate(4)
        assert torch.equal(choice(logits.repeat(25, 1), torch.linspace(0, 0.999, 50)), torch.tensor([2, 1]).repeat(25))
