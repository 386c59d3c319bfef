"""ResTok's tokenizer: residual levels, what a block sees, prefixes that decode, and what is refused."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.code import Code, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.nn.residual_levels import coarser, doubling_blocks, residual_pools, rotary_of_levels
from pipeline.perturbations.prefix_drop import PrefixDrop
from pipeline.published.restok import convert
from pipeline.published.restok_har import doubling_levels
from pipeline.recipes.building import output_layout
from pipeline.tokenizers.restok import ResTok, code_levels

CODES = {"kind": "vector_quantize", "dim": 4, "vocab": 12}
SIZES = {"width": 16, "depth": 2, "heads": 2, "conv_width": 8, "multipliers": [1, 1], "blocks": 1, "groups": 4}
LEVELS = {"token_levels": 4, "image_levels": 2, "single": 2, "z_channels": 6}
GOLDEN = Path(__file__).parents[1] / "golden" / "restok_tokenizer" / "state.safetensors"


def restok(**changes) -> ResTok:
    return ResTok(**({"image_size": 8, "bottleneck": CODES} | SIZES | LEVELS | changes)).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def dropped_to(lengths: list[int], tokens: int = 8) -> partial:
    """The perturbation that keeps so many tokens of each image, and sets the others to zero."""
    drop = PrefixDrop(scope="sample", action="mask")  # lengths from 1 to the whole, all alike
    given = GivenDraws({"perturbation.length": (torch.tensor(lengths) - 0.5) / tokens})
    return partial(drop.perturb, draws=given, step=0)


def test_a_block_is_the_means_of_what_coarser_blocks_leave_over():
    maps = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    pools = residual_pools(maps, doubling_blocks(6))
    assert [pool.shape[1] for pool in pools] == [1, 1, 2, 4, 8, 16]
    torch.testing.assert_close(pools[0][:, 0], maps.mean(dim=(2, 3)))
    assert pools[1].abs().max() < 1e-6, "the mean of what the mean leaves over"
    total, errors = torch.zeros_like(maps), []
    for pool, grid in zip(pools, [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4)]):
        total = total + F.interpolate(pool.mT.unflatten(2, grid), (4, 8), mode="nearest")
        torch.testing.assert_close(F.adaptive_avg_pool2d(total, grid), F.adaptive_avg_pool2d(maps, grid))
        errors.append((maps - total).square().mean().item())
    assert all(later < before for before, later in zip(errors[1:], errors[2:])), "each refines those before it"


def test_a_coarser_level_takes_every_second_token_and_leaves_the_rest():
    level = torch.tensor([3.0, 5.0, 2.0, 1.0])[None, :, None]
    made, rest = coarser(level)
    assert made.flatten().tolist() == [3.0, 2.0] and rest.flatten().tolist() == [0.0, 2.0, 0.0, -1.0]


def test_members_of_the_sequence_begin_where_those_before_have_ended():
    cosines, _ = rotary_of_levels([(2, 1), (2, 2), 3], 4)
    rows = [0, 1, *(2, 2, 3, 3), *(6, 7, 8)]
    columns = [0, 0, *(2, 3, 2, 3), *(6, 7, 8)]
    torch.testing.assert_close(cosines[:, 0], torch.tensor(rows).float().cos())
    torch.testing.assert_close(cosines[:, 2], torch.tensor(columns).float().cos())


@torch.no_grad()
def test_a_block_depends_on_those_before_it_and_interleaved_ids_on_all():
    for interleaved in (False, True):
        tokenizer = randomised(restok(interleaved=interleaved), 1)
        before = tokenizer.features(pictures())
        tokenizer.encoder.token_level_embedding[2] += torch.linspace(-1, 1, 16).sin()  # of tokens 2 and 3
        moved = (tokenizer.features(pictures()) - before).abs().amax(dim=(0, 2)) > 1e-5
        assert moved.tolist() == [interleaved] * 2 + [True] * 6


@torch.no_grad()
def test_levels_are_those_of_har_and_the_map_has_levels_too():
    assert code_levels(8, 4) == doubling_levels(128, 4) == [1, 1, 1, 1, 4, 8, 16, 32, 64]
    tokenizer = randomised(restok(image_levels=3, depth=3), 1)
    assert tokenizer.spec == LatentSpec((8,), 4, 12, levels=(1, 1, 2, 4))
    assert tokenizer.encoder.places == [0, 1]
    levels, tokens = tokenizer.encoder.states(tokenizer.pixel_encoder(pictures()))
    assert [level.shape[1] for level in levels] == [4, 8, 16] and tokens.shape == (3, 8, 16)


@torch.no_grad()
def test_any_first_tokens_decode_as_a_training_that_drops_the_others_has_them():
    tokenizer, images = randomised(restok(), 1), pictures()
    code = tokenizer.encode(images)
    for lengths in ([1, 2, 3], [8, 5, 4]):
        rebuilt = tokenizer(images, perturb=dropped_to(lengths))
        for row, length in enumerate(lengths):
            alone = tokenizer.decode(Code(ids=code.ids[row : row + 1, :length]))
            torch.testing.assert_close(rebuilt.images[row : row + 1], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokenizer(images).images, tokenizer.decode(Code(ids=code.ids)))
    with pytest.raises(ValueError, match="a code of 9 tokens is not this tokenizer's, which has 8"):
        tokenizer.decode(Code(ids=torch.zeros(1, 9, dtype=torch.int64)))


@torch.no_grad()
def test_a_code_of_zeros_is_no_dropped_token():
    tokenizer = randomised(restok(bottleneck={"kind": "finite_scalar", "levels": [3, 3]}), 1)
    for leave in tokenizer.encoder.exits:
        leave.weight.zero_(), leave.bias.zero_()
    rebuilt = tokenizer(pictures(), perturb=lambda neck, h, code: code.z)
    assert not rebuilt.code.z.any()
    torch.testing.assert_close(rebuilt.images, tokenizer.decode(Code(ids=rebuilt.code.ids)))


def test_the_second_pass_is_read_by_losses_and_changes_no_image():
    plain, tokenizer = restok(), restok(feature_pass=True)
    weights = tokenizer.state_dict()
    plain.load_state_dict({name: value for name, value in weights.items() if name != "decoder.feature_token"})
    torch.testing.assert_close(plain(pictures()).images, tokenizer(pictures()).images)
    with torch.device("meta"):
        passing, without = restok(feature_pass=True), restok()
    assert output_layout(passing.to("meta"), "decoder.feature_map") == ([4, 4], 16)
    assert output_layout(passing, "encoder.summary") == ([1, 1], 16)
    with pytest.raises(ValueError, match="decoder.feature_map makes no map and no tokens"):
        output_layout(without.to("meta"), "decoder.feature_map")
    with pytest.raises(ValueError, match="no second pass; build it with feature_pass=true"):
        plain.decoder.pass_features(torch.zeros(1, 8, 4))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 3}, "restok: a width of 16 is not divisible by 3 heads"),
        ({"heads": 8}, "heads is 8 of width 16; rotary positions on two axes need 4, 8, ... channels a head"),
        ({"single": 3}, "single is 3; give one of 1, 2, 4, 8, where a block ends"),
        ({"image_size": 9}, "restok: images of 9 pixels do not divide by 2, the stride of 2 levels"),
        ({"image_levels": 4, "depth": 4}, "image_levels is 4, and 4 columns do not halve 3 times; give fewer"),
        ({"image_levels": 3}, "image_levels is 3, more than the depth of 2; give fewer"),
        ({"token_levels": 7}, "token_levels is 7, the last of 4x8 parts of a map of 4x4; give fewer"),
    ],
)
def test_what_does_not_fit_is_refused_by_one_line(changes, message):
    with pytest.raises(ValueError) as raised:
        restok(**changes)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_other_states_are_refused_and_heads_of_losses_stay_behind():
    state = {name: value.float() for name, value in load_file(GOLDEN).items()}
    sizes = {"heads": 2, "decoder_heads": 2, "image_size": 16}
    inference = {name: value for name, value in state.items() if not name.startswith(("vf_", "decoder.feat_"))}
    assert not convert(inference, **sizes)["tokenizer"].config.feature_pass
    with pytest.raises(ValueError, match="the number of heads of width 32 cannot be told"):
        convert(state, image_size=16)
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: encoder.other"):
        convert(state | {"encoder.other": torch.zeros(1)}, **sizes)
    with pytest.raises(ValueError, match="not a ResTok checkpoint: it has no quantize.embedding.weight"):
        convert({"a": torch.zeros(1)})
