"""Guidance is a function around a network: what it does at its ends, where it acts, and what it leaves alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.nn.conditions import null_of, select
from pipeline.samplers.guidance import Guidance, combine, drop, guided


class ByLabel(nn.Module):
    """Predicts its label, plus the state, in 4 channels and the same again as a learned variance."""

    config = SimpleNamespace(num_classes=10, condition_drop=0.3)

    def __init__(self):
        super().__init__()
        self.batches: list[int] = []

    def forward(self, z: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        assert time.shape == (len(z),) and time.dtype == torch.float32
        self.batches.append(len(z))
        labels = 0 if condition is None else condition.labels[:, None, None].to(z.dtype)
        return torch.cat([z + labels, z - labels], dim=-1)

    def select(self, condition: Condition | None) -> Condition | None:
        return select(condition, ("labels",))

    def null(self, condition: Condition) -> Condition:
        return null_of(condition, self.config.num_classes)


LABELS = Condition(labels=torch.tensor([1, 4]))


def z() -> Tensor:
    return torch.randn(2, 3, 4)


def test_scale_1_is_the_network_itself():
    network, state = ByLabel(), z()
    found = guided(network, LABELS, Guidance(1.0, channels=2, rescale=0.5))(state, 0.4)
    assert torch.equal(found, network(state, torch.full((2,), 0.4), LABELS))
    assert network.batches[0] == 2  # and no second half was asked


def test_guided_channels_lead_away_from_the_null_label_and_the_others_stay():
    network, state = ByLabel(), z()
    found = guided(network, LABELS, Guidance(3.0, channels=3))(state, 0.4)
    label = LABELS.labels[:, None, None].float()
    torch.testing.assert_close(found[..., :3], state[..., :3] + 10 + 3 * (label - 10))
    torch.testing.assert_close(found[..., 3:4], state[..., 3:] + label)
    torch.testing.assert_close(found[..., 4:], state - label)
    assert network.batches == [4]  # both halves in one batch
    everything = guided(network, LABELS, Guidance(3.0))(state, 0.4)
    torch.testing.assert_close(everything[..., :4], state + 10 + 3 * (label - 10))


def test_outside_its_interval_nothing_is_guided():
    network, state = ByLabel(), z()
    predict = guided(network, LABELS, Guidance(3.0, interval=(0.2, 0.6)))
    unguided = network(state, torch.full((2,), 0.7), LABELS)
    for level, acts in ((0.1, False), (0.2, True), (0.6, True), (0.7, False)):
        assert torch.equal(predict(state, level), unguided) != acts
    assert Guidance(3.0, interval=(0.0, 0.9)).at(float(torch.tensor(0.9))) == 3.0  # rounded over the edge


PUBLISHED = {  # where guidance acts, by the noise level, and on how many channels
    "LightningDiT, cfg_interval_start=0.125 of data time": (Guidance(6.7, (0.0, 0.875), 3), 0.875),
    "REPA, guidance_high=0.7 of noise time": (Guidance(1.8, (0.0, 0.7)), 0.7),
    "RAE, the whole way": (Guidance(1.42), 1.0),
}


@pytest.mark.parametrize("guidance, top", PUBLISHED.values(), ids=PUBLISHED)
def test_published_intervals_and_channels(guidance, top):
    levels = [i / 1000 for i in range(1001)]
    assert [guidance.at(u) != 1 for u in levels] == [u <= top for u in levels]
    network, state = ByLabel(), z()
    found = guided(network, LABELS, guidance)(state, 0.5)
    unguided = network(state, torch.full((2,), 0.5), LABELS)
    moved = (found != unguided).any(dim=0).any(dim=0)
    assert moved.tolist() == [i < (guidance.channels or 4) for i in range(8)]


def test_schedules_rise_towards_the_data():
    for schedule in ("linear", "cosine"):
        guidance = Guidance(5.0, schedule=schedule)
        scales = [guidance.at(u) for u in (1.0, 0.75, 0.5, 0.25, 0.0)]
        assert scales == sorted(scales) and scales[0] == pytest.approx(1) and scales[-1] == pytest.approx(5)
        assert scales[2] == pytest.approx(3)
    assert {Guidance(5.0).at(u) for u in (0.0, 0.5, 1.0)} == {5.0}


def test_rescaling_gives_the_conditional_spread():
    conditional, unconditional = torch.randn(2, 64, 4), torch.randn(2, 64, 4)
    found = combine(conditional, unconditional, 4.0, 4, rescale=1.0)
    torch.testing.assert_close(found.std(dim=(1, 2)), conditional.std(dim=(1, 2)))
    plain = combine(conditional, unconditional, 4.0, 4)
    assert (plain.std(dim=(1, 2)) > 2 * conditional.std(dim=(1, 2))).all()


def test_a_weaker_network_can_take_the_place_of_the_null_label():
    class Weak(ByLabel):
        def forward(self, z, time, condition=None):
            return 0.5 * super().forward(z, time, condition)

    network, state = ByLabel(), z()
    found = guided(network, LABELS, Guidance(2.0), weak=Weak())(state, 0.4)
    strong = network(state, torch.full((2,), 0.4), LABELS)
    torch.testing.assert_close(found[..., :4], 1.5 * strong[..., :4])


def test_an_unconditional_network_cannot_be_guided():
    with pytest.raises(ValueError, match="unconditional"):
        guided(ByLabel(), None, Guidance(2.0))
    assert guided(ByLabel(), None)(z(), 0.5).shape == (2, 3, 8)


def test_the_state_keeps_its_precision_whatever_the_networks():
    class Half(nn.Module):
        dtype = torch.bfloat16

        def forward(self, z, time, condition=None):
            assert z.dtype == torch.bfloat16 and time.dtype == torch.float32
            return z

    assert guided(Half(), None)(z(), 0.999).dtype == torch.float32


def test_labels_are_dropped_where_the_draw_falls_under_the_chance():
    network = ByLabel()
    found = drop(network, LABELS, torch.tensor([0.29, 0.31]))
    assert found.labels.tolist() == [10, 4]
    wrapped = nn.Module()
    wrapped.module = network
    assert drop(wrapped, LABELS, torch.tensor([0.29, 0.31])).labels.tolist() == [10, 4]
    assert drop(network, None, torch.tensor([0.0])) is None


def test_a_schedule_begins_at_its_start():
    for schedule in ("linear", "cosine"):
        law = Guidance(5.0, schedule=schedule, start=2.0)
        assert law.at(1.0) == pytest.approx(2.0) and law.at(0.0) == pytest.approx(5.0)
    assert Guidance(5.0, schedule="linear", start=2.0).at(0.5) == pytest.approx(3.5)
    assert Guidance(5.0, schedule="flipped_cosine", start=2.0).at(1.0) == pytest.approx(3.5)
    assert Guidance(5.0, interval=(0.0, 0.5), start=2.0).at(0.9) == 1.0
    with pytest.raises(ValueError, match="start is 2, and the scale is 1"):
        Guidance(1.0, start=2.0)


def test_a_first_token_at_the_full_scale_whatever_the_interval_says():
    released = Guidance(3.0, interval=(0.0, 0.82), first_full=True)
    assert [released.at(time) for time in (1.0, 0.99, 0.83, 0.82, 0.0)] == [3.0, 1.0, 1.0, 3.0, 3.0]
    assert Guidance(3.0, schedule="linear", first_full=True).at(1.0) == 3.0
    assert Guidance(3.0, interval=(0.0, 0.82)).at(1.0) == 1.0
