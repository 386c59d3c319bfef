"""The transformer of segments: a table and a head for each, positions, the border in sampling, and what it refuses."""

import generating
import pytest
import torch
import torch.nn.functional as F
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments
from pipeline.draws import ImageDraws
from pipeline.networks.segment_transformer import SegmentTransformer
from pipeline.objectives.next_token_by_segment import NextTokenBySegment
from pipeline.samplers.guidance import Guidance, check_same_codes

SEGMENTS = [[3], [2, 3]]
SPEC = LatentSpec((9,), 1, 10, segments=((3,), (2, 3)))
ASKED = Condition(labels=torch.tensor([0, 3]))


def network(**changes) -> SegmentTransformer:
    sizes = {"grid": [9], "segments": SEGMENTS, "vocab": 10, "num_classes": 4, "depth": 2, "width": 16, "heads": 2}
    return randomised(SegmentTransformer(**(sizes | changes)), 1)


def ids_of(batch: int = 2) -> Tensor:
    return torch.randint(10, (batch, 9), generator=torch.Generator().manual_seed(3))


def stepwise(model: SegmentTransformer, ids: Tensor) -> Tensor:
    """Logits of sampling where the tokens are those given."""
    memory, seen, last = model.begin(len(ids), ASKED), [], None

    def choose(logits: Tensor, number: int) -> Tensor:
        seen.append(logits)
        return logits.argmax(dim=-1)

    for place in range(ids.shape[1]):
        model.advance(memory, last, choose)
        last = ids[:, place, None]
    return torch.cat(seen, dim=1)


@torch.no_grad()
def test_each_token_is_of_those_before_it_and_steps_agree_with_the_whole():
    model, ids = network(), ids_of()
    logits = model(ids, ASKED)[:, :, 0]
    torch.testing.assert_close(stepwise(model, ids), logits, atol=1e-5, rtol=1e-4)
    for place in range(9):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 10
        moved = (model(changed, ASKED)[:, :, 0] - logits).abs().amax(dim=(0, 2)) > 1e-6
        assert not moved[: place + 1].any() and (place == 8 or moved[place + 1 :].any())


@torch.no_grad()
def test_the_released_border_embeds_the_last_holistic_token_by_the_table_of_patches():
    own, released, ids = network(), network(border="next"), ids_of()
    torch.testing.assert_close(own(ids, ASKED), released(ids, ASKED), atol=0, rtol=0)  # the same in training
    apart = (stepwise(own, ids) - stepwise(released, ids)).abs().amax(dim=(0, 2)) > 1e-5
    assert apart.tolist() == [False] * 3 + [True] * 6
    released.embeddings[1].load_state_dict(released.embeddings[0].state_dict())
    own.embeddings[1].load_state_dict(own.embeddings[0].state_dict())
    torch.testing.assert_close(stepwise(own, ids), stepwise(released, ids))


@torch.no_grad()
def test_segments_have_tables_and_heads_of_their_own():
    model, ids = network(), ids_of()
    before = model(ids, ASKED)[:, :, 0]
    model.outputs[0].outputs[0].weight.zero_()
    assert not model(ids, ASKED)[:, :3].any() and torch.equal(model(ids, ASKED)[:, 3:, 0], before[:, 3:])
    model.embeddings[1].tables[0].weight.zero_()
    moved = (model(ids, ASKED)[:, :, 0] - before).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [True] * 3 + [False] + [True] * 5  # the first patch is predicted from holistic ids


def test_the_loss_is_the_sum_of_the_means_of_the_segments():
    model, ids = network(), ids_of()
    logits = model(ids, ASKED)[:, :, 0]
    parts = [F.cross_entropy(logits[:, span].mT, ids[:, span]) for span in (slice(0, 3), slice(3, 9))]
    loss = NextTokenBySegment().loss(model, Code(ids=ids), ASKED)["next_token_by_segment"]
    torch.testing.assert_close(loss, sum(parts))


def test_samples_are_rows_of_both_segments():
    draws = ImageDraws.from_seeds([1, 2])
    code = generating.sample(NextTokenBySegment(), network(), ASKED, SPEC, draws, SPEC.tokens, Guidance(2.0))
    assert code.ids.shape == (2, 9) and code.ids.max() < 10


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="segment_transformer predicts the ids of segments"):
        network(segments=[[9]])
    with pytest.raises(ValueError, match="divisible by 4"):
        network(width=12)
    with pytest.raises(ValueError, match="row by row"):
        network()(ids_of(), ASKED, order=torch.arange(9).expand(2, -1))
    with pytest.raises(ValueError, match="does not fit the network's 9"):
        network()(ids_of()[:, :5], ASKED)
    with pytest.raises(ValueError, match="kind=segment_transformer"):
        NextTokenBySegment().check_network(Arguments({"width": 16}))


def test_a_tokenizer_of_other_segments_is_refused():
    class Decoding:
        spec = LatentSpec((9,), 1, 10, segments=((5,), (2, 2)))

    with pytest.raises(ValueError, match="segments"):
        check_same_codes(Decoding(), network())
