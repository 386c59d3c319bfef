"""GigaTok's tokenizer: what its queries begin as, its decoder's moments, ReToK's copies, and what is refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.nn.adaptive_convolution import AdaptiveNorm
from pipeline.nn.query_transformer import part_grids, pool
from pipeline.perturbations.prefix_drop import PrefixDrop
from pipeline.published.gigatok import convert
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.gigatok import GigaTok
from pipeline.training.reconstruction import Reconstruction

CODES = {"kind": "vector_quantize", "dim": 4, "vocab": 12}
SIZES = {"tokens": 8, "width": 24, "depth": 2, "heads": 3, "conv_width": 8, "multipliers": [1, 2], "blocks": 1}
GOLDEN = Path(__file__).parents[1] / "golden" / "gigatok_vq_training"


def gigatok(**changes) -> GigaTok:
    return GigaTok(**({"image_size": 8, "bottleneck": CODES, "z_channels": 8, "groups": 4} | SIZES | changes)).eval()


def pictures(count: int = 3, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def draws(count: int, step: int = 0) -> StepDraws:
    return StepDraws(0, step, slice(0, count), count)


def test_queries_are_means_of_ever_smaller_parts():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    whole, halves, quarters = [7.5], [6.5, 8.5], [2.5, 4.5, 10.5, 12.5]
    eighths = [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]
    expected = torch.tensor([*whole, *whole, *halves, *quarters, *eighths])
    eighths_of_rows = F.avg_pool2d(maps, (2, 1)).flatten()
    torch.testing.assert_close(pool(maps, 8)[0, :, 0], expected[:8])
    torch.testing.assert_close(pool(maps, 16)[0, 8:, 0], eighths_of_rows)
    torch.testing.assert_close(pool(maps, 3)[0, :, 0], expected[:3])
    torch.testing.assert_close(pool(maps, 4, "mean")[0, :, 0], torch.full((4,), 7.5))


def test_256_queries_are_of_the_released_levels():
    counts = [rows * columns for rows, columns in part_grids(256)]
    assert counts == [1, 1, 2, 4, 8, 16, 32, 64, 128] and part_grids(256)[-1] == (8, 16)


def test_an_adaptive_norm_gives_a_map_the_moments_that_its_layers_make_of_anothers():
    norm = randomised(AdaptiveNorm(2, 4, 4), 1)
    h, z = torch.randn(3, 4, 5, 5), torch.randn(3, 2, 3, 3) * 2 + 1
    out = norm(h, z)
    torch.testing.assert_close(out.mean(dim=(2, 3)), norm.shift(z.mean(dim=(2, 3))))
    std = out.std(dim=(2, 3), correction=0)
    torch.testing.assert_close(std, norm.scale(z.std(dim=(2, 3))).abs(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"adaptive": False, "upsampling": "nearest"}, {"pooling": "mean"}])
@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_any_number_of_tokens_and_any_prefix(tokens, changes):
    tokenizer, images = randomised(gigatok(tokens=tokens, **changes), 1), pictures()
    code = tokenizer.encode(images)
    assert tokenizer.spec == LatentSpec((tokens,), 4, 12) and code.ids.shape == (3, tokens)
    torch.testing.assert_close(tokenizer.decode(Code(ids=code.ids)), tokenizer(images).images)
    for kept in range(1, tokens + 1):
        assert tokenizer.decode(Code(ids=code.ids[:, :kept])).shape == images.shape
    assert torch.equal(tokenizer.encode(images[1:2]).ids, code.ids[1:2])
    with pytest.raises(ValueError, match=f"a code of {tokens + 1} tokens is not this tokenizer's"):
        tokenizer.decode(Code(ids=torch.zeros(1, tokens + 1, dtype=torch.int64)))


@torch.no_grad()
def test_copies_are_the_last_tokens_with_other_positions():
    tokenizer, images = randomised(gigatok(redundant=6), 1), pictures()
    maps = tokenizer.map_encoder(images)
    assert not torch.allclose(tokenizer.read(maps, 14)[:, 8:], tokenizer.read(maps, 8)[:, 2:])
    tokenizer.encoder.token_positions[8:] = tokenizer.encoder.token_positions[2:8]
    padded = tokenizer.read(maps, 14)
    torch.testing.assert_close(padded[:, 8:], padded[:, 2:8])
    torch.testing.assert_close(tokenizer.features(images), padded[:, :8])


def test_the_dropped_prefix_is_of_the_padded_sequence_and_the_code_is_not():
    tokenizer, images = randomised(gigatok(redundant=6), 1).train(), pictures()
    drop, lengths = PrefixDrop(least=2), []
    for step in range(40):
        perturb = lambda neck, h, code: drop(neck, h, code, draws(3, step), step)  # noqa: B023, E731
        with torch.no_grad():
            rebuilt = tokenizer(images, None, draws(3, step), perturb)
        lengths.append(rebuilt.decoder_input.shape[1])
        assert rebuilt.code.z.shape == (3, 8, 4) and rebuilt.code.ids.shape == (3, 8)
    assert min(lengths) >= 2 and max(lengths) > 8
    unperturbed = tokenizer(images)
    torch.testing.assert_close(unperturbed.images, tokenizer.eval().decode(Code(ids=unperturbed.code.ids)))


def test_a_phase_of_the_pixel_decoder_moves_it_alone():
    tokenizer, images = randomised(gigatok(), 1).train(), pictures()
    weights = {"pixel": 1.0, "vq": 0.0, "commit": 0.0}
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), weights, train="pixel_decoder")
    task = Reconstruction(tokenizer, phase, {"pixel": Pixel("l2")})
    ((_, terms),) = task.turns(ImageBatch(images), draws(3), 0)
    sum(terms.values()).backward()
    moved = {name for name, parameter in tokenizer.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in tokenizer.named_parameters() if name.startswith("pixel_decoder.")}


def test_the_direct_way_leaves_tokens_out():
    tokenizer, images = randomised(gigatok(direct=True), 1).train(), pictures()
    assert set(GigaTok.terms(Arguments.from_config(tokenizer))) == {"vq", "commit", "direct_pixel", "direct_map"}
    terms = tokenizer(images).terms
    pixels = tokenizer.pixel_decoder(tokenizer.map_encoder(images))
    torch.testing.assert_close(terms["direct_pixel"], F.mse_loss(pixels, images))
    terms["direct_map"].backward(retain_graph=True)
    assert tokenizer.decoder.conv_out.weight.grad.abs().sum() > 0
    tokenizer.zero_grad()
    terms["direct_pixel"].backward()
    assert tokenizer.decoder.conv_out.weight.grad is None and tokenizer.map_encoder.conv_in.weight.grad is not None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": 40}, "tokens is 40, of 4x8 parts of a map of 4x4; set fewer, or give multipliers fewer entries"),
        ({"redundant": 9}, "redundant is 9; give at most 8, the tokens there are"),
        ({"decoder_multipliers": [1]}, "decoder_multipliers has 1 levels; give 2, as multipliers has"),
        ({"heads": 5}, "gigatok: a width of 24 is not divisible by 5 heads"),
        ({"image_size": 9}, "gigatok: images of 9 pixels do not divide by 2, the stride of 2 levels; change one"),
        ({"multipliers": [1] * 4, "tokens": 1}, "gigatok: 4 levels leave a map of one place, which has no moments"),
    ],
)
def test_what_does_not_fit_is_refused_by_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        gigatok(**changes)
    assert "\n" not in str(raised.value)


def test_retoks_tables_of_copies_are_imported():
    state = {name: value.float() for name, value in load_file(GOLDEN / "state.safetensors").items()}
    for half, width in (("s2to1encoder", 40), ("s1to2decoder", 32)):
        state[f"{half}.latent_token_positional_embedding_comp"] = torch.randn(6, 1, width)
    tokenizer = convert(state, heads=4, decoder_heads=2, image_size=8)["tokenizer"]
    assert tokenizer.config.redundant == 6 and tokenizer.spec.tokens == 8
    ours = tokenizer.decoder.token_positions
    torch.testing.assert_close(ours[8:], state["s1to2decoder.latent_token_positional_embedding_comp"][:, 0])
    torch.testing.assert_close(ours[:8], state["s1to2decoder.latent_token_positional_embedding"][:, 0])


def test_another_state_is_refused():
    state = {name: value.float() for name, value in load_file(GOLDEN / "state.safetensors").items()}
    with pytest.raises(ValueError, match="the number of heads of width 40 cannot be told"):
        convert(state, image_size=8)
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: encoder.mid.2.norm.weight"):
        convert(state | {"encoder.mid.2.norm.weight": torch.zeros(1)}, heads=4, decoder_heads=2, image_size=8)
    with pytest.raises(ValueError, match="not a GigaTok checkpoint: it has no quantize.embedding.weight"):
        convert({"a": torch.zeros(1)})
