"""HAR's network: what a level sees, equality with sampling level by level, the published size, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.code import Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.networks.parallel_level_transformer import ParallelLevelTransformer
from pipeline.nn.tokens import TokenHead
from pipeline.objectives.next_scale import NextScale
from pipeline.published.restok_har import convert, doubling_levels
from pipeline.samplers.next_level import LevelChoice, spans
from pipeline.samplers.request import SamplingRequest

GOLDEN = Path(__file__).parents[1] / "golden" / "restok_har" / "state.safetensors"
LABELS = Condition(labels=torch.tensor([0, 3, 1]))
LEVELS = pytest.mark.parametrize("levels", [(1, 1, 2, 4, 8), (2, 3, 3), (1,), (4, 4)])


def network(levels=(1, 1, 2, 4, 8), **switches) -> ParallelLevelTransformer:
    torch.manual_seed(1)
    sizes = {"grid": [sum(levels)], "levels": list(levels), "vocab": 13, "num_classes": 4}
    made = ParallelLevelTransformer(**sizes, depth=2, width=24, heads=3, **switches).eval()
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.3)
    return made


def request(made: ParallelLevelTransformer) -> SamplingRequest:
    levels = tuple(made.config.levels)
    spec = LatentSpec((sum(levels),), 5, 13, levels=levels)
    return SamplingRequest(made, LABELS, spec, ImageDraws.from_seeds([1, 2, 3]), len(levels))


@LEVELS
@torch.no_grad()
def test_a_level_depends_on_the_levels_before_it_alone(levels):
    made = network(levels)
    ids = torch.randint(13, (3, sum(levels)), generator=torch.Generator().manual_seed(2))
    before = made(ids, LABELS)
    for level, span in enumerate(spans(levels)):
        other = ids.clone()
        other[:, span] = (other[:, span] + 1) % 13
        changed = (made(other, LABELS) - before).abs().amax(dim=(0, 2, 3))
        assert not changed[: span.stop].any(), level
        assert level == len(levels) - 1 or changed[span.stop :].min() > 0


@LEVELS
@torch.no_grad()
def test_a_memory_changes_nothing(levels, monkeypatch):
    """The logits that ids are chosen from, level by level, are those of all levels at once."""
    made, seen, choose = network(levels), [], TokenHead.choose
    monkeypatch.setattr(TokenHead, "choose", lambda head, h, how: seen.append(h) or choose(head, h, how))
    code = NextScale().sample(request(made))
    whole = made(code.ids, LABELS)[:, :, 0]
    torch.testing.assert_close(made.head.outputs[0](torch.cat(seen, dim=1)), whole, atol=2e-5, rtol=1e-4)
    assert [h.shape[1] for h in seen] == list(levels), "one evaluation a level"


@torch.no_grad()
def test_with_levels_of_one_token_it_is_the_causal_transformer():
    """But for the class's place, which LlamaGen does not count: the row of positions is one longer here."""
    made = network((1,) * 6)
    causal = CausalTransformer([6], 13, 4, depth=2, width=24, heads=3, position="rotary_sequence").eval()
    weights = {name: value for name, value in made.state_dict().items() if name != "specials"}
    causal.load_state_dict(weights)
    causal.cosines.copy_(torch.cat([made.cosines, causal.cosines[-1:]]))
    causal.sines.copy_(torch.cat([made.sines, causal.sines[-1:]]))
    ids = torch.randint(13, (3, 6), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(made(ids, LABELS), causal(ids, LABELS), atol=2e-5, rtol=1e-4)


def test_the_published_generator_has_the_published_size_in_nine_steps():
    """326 M parameters, of 128 ids of a codebook of 8,192."""
    levels = doubling_levels(128, 4)
    assert levels == [1, 1, 1, 1, 4, 8, 16, 32, 64]
    sizes = {"depth": 24, "width": 1024, "heads": 16, "feed_forward_multiple": 256}
    with torch.device("meta"):
        made = ParallelLevelTransformer([128], levels, 8192, 1000, **sizes)
    assert round(sum(parameter.numel() for parameter in made.parameters()) / 1e6) == 326


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="levels that do not shrink, and this code has levels of \\[4, 1\\] tokens"):
        network((4, 1))
    with pytest.raises(ValueError, match="smooth mixes code vectors"):
        NextScale().sample(request(network()), LevelChoice(smooth=True))
    with pytest.raises(ValueError, match="16 tokens are not 3 that are doubled; give single="):
        convert(load_file(GOLDEN), heads=4, single=3)
    imported = convert(load_file(GOLDEN), heads=4, single=2)["network"]
    assert imported.config.levels == [1, 1, 2, 4, 8]
