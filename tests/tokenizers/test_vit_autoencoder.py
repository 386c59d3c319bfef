"""The autoencoder of two vision transformers: its shapes, positions, heads, dropped patches, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.tiny_pipeline import randomised
from torch import Tensor, nn

from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, build
from pipeline.draws import GivenDraws, StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.feature_cosine import FeatureCosine
from pipeline.losses.pixel import Pixel
from pipeline.nn.embeddings import rotary_tables, rotate, unit_rotary_tables
from pipeline.nn.feature_head import HeadShape
from pipeline.nn.grid_transformer import GridTransformer, PlainBlock
from pipeline.nn.patch_heads import make_head
from pipeline.nn.token_drop import draw_kept_positions, scatter_tokens
from pipeline.recipes.building import count_parameters
from pipeline.recipes.files import CONFIGS, read
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.base import Tap
from pipeline.tokenizers.vit_autoencoder import VitAutoencoder
from pipeline.training.reconstruction import Reconstruction

CODES = {"kind": "identity", "dim": 4}
SIZES = {"width": 24, "depth": 2, "heads": 3, "patch_size": 4}
DROP = {"token_drop": [0.3, 0.6]}
HEADS = ("linear", "conv", "pixel_shuffle", "transposed")
POSITIONS = ("rotary", "rotary_sequence", "learned", "fixed", "rotary_and_learned", "rotary_and_fixed")


def vit(**changes) -> VitAutoencoder:
    return VitAutoencoder(**({"image_size": 16, "bottleneck": CODES} | SIZES | changes)).eval()


def pictures(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size) * 2 - 1


def step(number: int = 0, count: int = 4, first: int = 0) -> StepDraws:
    return StepDraws(0, number, slice(first, first + count), 4)


def turn(tokenizer: VitAutoencoder, images: Tensor, train: str = "all", number: int = 0) -> dict[str, Tensor]:
    """The terms of one turn of a phase, after its backward."""
    weights = dict.fromkeys(("pixel", *tokenizer.terms(Arguments.from_config(tokenizer))), 1.0)
    of = Phase(Loop(1, {"tokenizer": 1e-3}), weights, train=train)
    task = Reconstruction(tokenizer, of, {"pixel": Pixel("l2")})
    ((_, terms),) = task.turns(ImageBatch(images), step(number, len(images)), number)
    sum(terms.values()).backward()
    return terms


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        *({"head": head} for head in HEADS),
        *({"position": position} for position in POSITIONS),
        {"bottleneck": {"kind": "gaussian", "dim": 5}, "decoder_width": 16, "decoder_heads": 4, "decoder_depth": 1},
        {"bottleneck": {"kind": "layer_norm", "dim": 6}, "parallel": True, "layer_scale": 1e-4, "outer_norms": "none"},
        {"bottleneck": {"kind": "vector_quantize", "dim": 3, "vocab": 7}, "norm": "rms", "query_key_norm": True},
        {"bottleneck": {"kind": "finite_scalar", "levels": [3, 3]}, "feed_forward": "gelu", "patch_size": 2} | DROP,
    ],
)
def test_any_head_position_and_bottleneck(changes):
    tokenizer, images = randomised(vit(**changes), 1), pictures(2)
    arguments = Arguments.from_config(tokenizer)
    side = 16 // arguments["patch_size"]
    neck = tokenizer.neck
    expected = LatentSpec((side, side), neck.dim, neck.vocab, neck.codebooks)
    assert tokenizer.spec == VitAutoencoder.geometry(arguments) == expected
    code, rebuilt = tokenizer.encode(images), tokenizer(images)
    assert code.z.shape == (2, *tokenizer.spec.shape) and rebuilt.images.shape == images.shape
    torch.testing.assert_close(tokenizer.decode(code), rebuilt.images)
    torch.testing.assert_close(tokenizer.encode(images[1:]).z, code.z[1:], atol=1e-5, rtol=1e-4)
    assert set(rebuilt.terms) == set(VitAutoencoder.terms(arguments))
    assert set(rebuilt.features) == set(tokenizer.can.features)
    if code.ids is not None:
        torch.testing.assert_close(tokenizer.decode(Code(ids=code.ids)), rebuilt.images)


@torch.no_grad()
@pytest.mark.parametrize("kind", HEADS)
def test_every_head_decodes_each_patch_at_its_position(kind):
    head = randomised(make_head(kind, 6, 4), 1)
    assert head.last_layer is not None and any(p is head.last_layer for p in head.parameters())
    h = torch.randn(2, 6, 6)
    images = head(h, (2, 3))
    assert images.shape == (2, 3, 8, 12)
    h[:, 4] += 1  # row 1, column 1
    apart = (head(h, (2, 3)) - images).abs().amax(dim=(0, 1)) > 1e-6
    reach = 1 if kind == "conv" else 0
    assert apart[4:, 4:8].all() and not apart[: 4 - reach].any() and not apart[:, : 4 - reach].any()


@torch.no_grad()
def test_heads_are_one_function_in_several_layouts():
    linear, _, shuffled, transposed = (randomised(make_head(kind, 6, 4), 1) for kind in HEADS)
    weight = linear.patches.weight.unflatten(0, (4, 4, 3))  # row, column, colour
    shuffled.conv.weight.copy_(weight.permute(2, 0, 1, 3).flatten(0, 2)[..., None, None])
    shuffled.conv.bias.copy_(linear.patches.bias.unflatten(0, (4, 4, 3)).permute(2, 0, 1).flatten())
    h = torch.randn(2, 9, 6)
    torch.testing.assert_close(shuffled(h), linear(h))
    transposed.conv.weight.copy_(weight.permute(3, 2, 0, 1))
    linear.patches.bias.copy_(transposed.conv.bias.repeat(16))
    torch.testing.assert_close(transposed(h), linear(h))


@torch.no_grad()
def test_rotary_positions_make_a_code_consistent_under_translation():
    """A token sees others by how far they are alone: without a border, moved patches move their codes along."""
    for position, moves in (("rotary", True), ("fixed", False), ("learned", False)):
        tokenizer = randomised(vit(position=position), 1)
        grid, shift = tokenizer.encoder.transformer, 1
        images = pictures(1)
        seen = torch.tensor([[0, 1, 4, 5, 8]])  # an L of patches, and the same one column to the right
        moved = images.roll(4 * shift, dims=3)
        here = tokenizer.encoder(images, seen)
        there = tokenizer.encoder(moved, seen + shift)
        assert torch.allclose(here, there, atol=1e-5) == moves, position
        assert grid.position == position


@torch.no_grad()
def test_codes_and_images_may_be_of_other_sizes_where_no_position_is_learned():
    for position in ("rotary", "fixed"):
        tokenizer, images = randomised(vit(position=position), 1), torch.rand(2, 3, 8, 24)
        code = tokenizer.encode(images)
        assert code.z.shape == (2, 12, 4) and tokenizer(images).images.shape == images.shape
        torch.testing.assert_close(tokenizer.decode(code, grid=(2, 6)), tokenizer(images).images)
    with pytest.raises(ValueError, match="learned on a grid of 4x4, not 2x6; set position=rotary"):
        vit(position="learned").encode(images)
    with pytest.raises(ValueError, match="8x22 pixels do not divide by the stride of 4"):
        vit().encode(images[..., :22])


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_blocks_are_what_they_say(norm):
    x = torch.randn(2, 5, 12)
    block = randomised(PlainBlock(12, 3, norm), 1)
    h = x + block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), h + block.feed_forward(block.norm2(h)))
    block = randomised(PlainBlock(12, 3, norm, parallel=True, layer_scale=0.1), 1)
    h = block.norm1(x)
    torch.testing.assert_close(block(x), x + block.scale1 * (block.attention(h) + block.feed_forward(h)))
    fresh = PlainBlock(12, 3, norm, layer_scale=1e-4)
    assert (fresh.scale1 == 1e-4).all() and (fresh.scale2 == 1e-4).all() and (fresh(x) - x).abs().max() < 0.01


@torch.no_grad()
def test_a_transformer_on_some_positions_uses_their_embeddings():
    transformer = randomised(GridTransformer((4, 4), 24, 1, 3, "rotary_and_learned", "both"), 1)
    h, kept = torch.randn(1, 16, 24), torch.tensor([[2, 7, 11]])
    cosines, sines = rotary_tables((4, 4), 8)
    inner = transformer.norm_in((h + transformer.positions)[:, kept[0]])
    expected = transformer.norm_out(transformer.blocks[0](inner, (cosines[kept[0]], sines[kept[0]])))
    torch.testing.assert_close(transformer(h, (4, 4), kept), expected)
    every = torch.arange(16)[None]
    torch.testing.assert_close(transformer(h, (4, 4), every), transformer(h, (4, 4)))


def test_kept_tokens_return_to_their_positions():
    draws = StepDraws(0, 3, slice(0, 6), 6)
    kept = draw_kept_positions(draws, 20, 0.5, 0.5)
    assert kept.shape == (6, 10) and (kept.diff(dim=1) > 0).all() and len({tuple(row) for row in kept.tolist()}) > 1
    numbers = torch.arange(1.0, 21).expand(6, -1)
    full, present = scatter_tokens(numbers.gather(1, kept)[..., None], kept, 20)
    assert torch.equal(full[..., 0], numbers * present) and (present.sum(1) == 10).all()


def test_the_fraction_that_is_dropped():
    shares = [
        1 - draw_kept_positions(StepDraws(1, n, slice(0, 1), 1), 1000, -0.1, 0.4).shape[1] / 1000 for n in range(400)
    ]
    assert max(shares) <= 0.4 and abs(shares.count(0.0) / 400 - 0.2) < 0.06
    assert abs(sum(shares) / 400 - 0.16) < 0.02  # (0.4^2 / 2) / 0.5
    given = GivenDraws({"token_drop.share": torch.tensor([0.99]), "token_drop.order": torch.rand(1, 10)})
    assert draw_kept_positions(given, 10, 0.9, 0.95).shape == (1, 1)


@torch.no_grad()
def test_the_decoder_reads_the_code_of_kept_patches_and_the_mask_token_elsewhere():
    tokenizer, images = randomised(vit(**DROP), 1).train(), pictures()
    entered = []
    tokenizer.decoder.transformer.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    rebuilt = tokenizer(images, draws=step())
    kept = rebuilt.features["kept"]
    assert kept.shape == (4, 16) and 0.3 <= 1 - kept.float().mean() <= 0.6
    assert (rebuilt.code.z[~kept] == 0).all() and (rebuilt.code.z[kept] != 0).all()
    torch.testing.assert_close(entered[0][kept], tokenizer.decoder.embedding(rebuilt.code.z[kept]))
    assert (entered[0][~kept] == tokenizer.decoder.mask_token).all()
    shown = kept[0].nonzero()[:, 0][None]
    torch.testing.assert_close(tokenizer.encoder(images[:1], shown)[0], rebuilt.code.z[0][kept[0]])
    changed = images.clone()
    changed[0].view(3, 4, 4, 4, 4)[:, :, :, :, :].mul_(kept[0].view(4, 1, 4, 1))  # what is unseen turns grey
    torch.testing.assert_close(tokenizer(changed, draws=step()).code.z[0], rebuilt.code.z[0])


@torch.no_grad()
def test_a_perturbation_is_of_what_was_seen():
    tokenizer, images = randomised(vit(**DROP), 1).train(), pictures()
    lengths = []

    def doubled(neck, h, code):
        lengths.append(code.z.shape[1])
        return 2 * code.z

    rebuilt = tokenizer(images, draws=step(), perturb=doubled)
    kept = rebuilt.features["kept"]
    assert lengths == [int(kept[0].sum())]
    torch.testing.assert_close(rebuilt.images, tokenizer.decoder(2 * rebuilt.code.z, (4, 4), kept))
    torch.testing.assert_close(rebuilt.code.z, tokenizer(images, draws=step()).code.z)


@torch.no_grad()
def test_nothing_is_dropped_but_where_the_encoder_trains():
    tokenizer, images = randomised(vit(**DROP), 1), pictures()
    whole = tokenizer.decode(tokenizer.encode(images))
    for made in (tokenizer(images), tokenizer(images, draws=step())):  # in evaluation mode
        torch.testing.assert_close(made.images, whole)
        assert made.features["kept"].all()
    tokenizer.train()
    torch.testing.assert_close(tokenizer(images).images, whole)  # without draws
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images)), whole)
    assert not torch.allclose(tokenizer(images, draws=step()).images, whole)
    for parameter in tokenizer.encoder.parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(tokenizer(images, draws=step()).images, whole)  # a phase of the decoder alone


@torch.no_grad()
def test_dropped_positions_are_a_function_of_step_and_image():
    tokenizer, images = randomised(vit(**DROP), 1).train(), pictures()
    made = tokenizer(images, draws=step())
    torch.testing.assert_close(tokenizer(images[2:], draws=step(first=2, count=2)).images, made.images[2:])
    assert not torch.equal(tokenizer(images, draws=step(1)).features["kept"], made.features["kept"])


@pytest.mark.parametrize("part", ["all", "decoder", "encoder"])
def test_every_trained_parameter_of_a_phase_has_a_gradient_and_no_other(part):
    options = {"position": "rotary_and_learned", "outer_norms": "both", "layer_scale": 0.5, "query_key_norm": True}
    tokenizer = randomised(vit(head="conv", **options, **DROP), 1).train()
    turn(tokenizer, pictures(), part)
    trained = {id(p) for p in tokenizer.trainable(part)}
    for name, parameter in tokenizer.named_parameters():
        moved = parameter.grad is not None and bool((parameter.grad != 0).any())
        if name == "decoder.mask_token" and part == "decoder":
            assert parameter.grad is not None and not moved, "nothing is dropped, yet it is in the graph"
        else:
            assert moved == (id(parameter) in trained), name
    held = [id(p) for name in ("encoder", "decoder") for p in tokenizer.trainable(name)]
    assert sorted(held) == sorted(id(p) for p in tokenizer.parameters())
    assert any(p is tokenizer.last_layer for p in tokenizer.trainable("decoder"))


def test_a_new_tokenizer_rebuilds_better_after_a_few_steps():
    torch.manual_seed(0)
    tokenizer, images = vit(bottleneck={"kind": "identity", "dim": 8}), pictures(4)
    optimizer, errors = torch.optim.AdamW(tokenizer.parameters(), 2e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        errors.append(turn(tokenizer, images)["pixel"].item())
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


def test_gradient_checkpointing_changes_no_gradient():
    tokenizer, images, found = randomised(vit(**DROP), 1).train(), pictures(), []
    for _ in range(2):
        tokenizer.zero_grad()
        tokenizer(images, draws=step(3)).images.square().sum().backward()
        found.append({name: p.grad.clone() for name, p in tokenizer.named_parameters()})
        tokenizer.enable_gradient_checkpointing()
    assert tokenizer.is_gradient_checkpointing
    torch.testing.assert_close(*found)


@torch.no_grad()
def test_a_saved_folder_gives_the_same_tokenizer(tmp_path):
    tokenizer = randomised(vit(position="rotary_and_learned", head="conv", **DROP), 1)
    tokenizer.mean.fill_(0.3)
    tokenizer.save_pretrained(tmp_path)
    images, again = pictures(), VitAutoencoder.from_pretrained(tmp_path)
    assert dict(again.config)["token_drop"] == [0.3, 0.6]
    assert torch.equal(again(images).images, tokenizer(images).images)
    assert torch.equal(again.encode(images).z, tokenizer.encode(images).z)
    assert not {name for name, _ in tokenizer.named_children()} & set(tokenizer.config)


@torch.no_grad()
def test_a_layer_norm_code_has_mean_zero_and_power_one():
    neck, h = build("bottlenecks", {"kind": "layer_norm", "dim": 6}), 3 * torch.randn(2, 5, 6) + 1
    code, terms = neck(h)
    torch.testing.assert_close(code.z.mean(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(code.z.square().mean(-1), torch.ones(2, 5))
    torch.testing.assert_close(neck(5 * h + 2)[0].z, code.z, atol=1e-4, rtol=0)
    assert terms == {} and code.ids is None
    torch.testing.assert_close(code.z, F.layer_norm(h, (6,), eps=1e-6))
    with pytest.raises(ValueError, match="of 1 channel nothing is left"):
        build("bottlenecks", {"kind": "layer_norm", "dim": 1})


@pytest.mark.parametrize(
    "fragment, millions", [("vitok_sb16", 129), ("vitok_v2_350m_f16x16", 354), ("rectok_b16", 172)]
)
def test_the_fragments_have_the_published_size(fragment, millions):
    node = read(CONFIGS / "tokenizers" / f"{fragment}.yaml")["tokenizer"]["model"]
    with torch.device("meta"):
        built = build("tokenizers", node, image_size=256)
    assert round(count_parameters(built) / 1e6) == millions and built.spec.grid == (16, 16)


def test_positions_on_a_unit_square_have_all_frequencies_twice_in_a_row_and_turn_no_pairs():
    cosines, sines = unit_rotary_tables((2, 3), 8)
    assert cosines.shape == (6, 8)
    for table, function in ((cosines, math.cos), (sines, math.sin)):
        last = [function(2 * math.pi * frequency) for frequency in (7.0, 7e-4)]  # of the row at 1, and the column at 1
        torch.testing.assert_close(table[5], torch.tensor(4 * last), atol=1e-5, rtol=0)
        torch.testing.assert_close(table[0], torch.full((8,), function(0.0)))
    x = torch.randn(1, 6, 8)
    first, second = x[..., ::2], x[..., 1::2]
    turned = first * cosines[:, ::2] - second * sines[:, ::2], second * cosines[:, 1::2] + first * sines[:, 1::2]
    expected = torch.stack(turned, dim=-1).flatten(-2)
    torch.testing.assert_close(rotate(x, cosines, sines, paired=False), expected)
    narrow = {
        "kind": "vit_autoencoder",
        "bottleneck": {"kind": "gaussian", "dim": 2},
        "width": 8,
        "depth": 1,
        "heads": 2,
    }
    with pytest.raises(ValueError, match="needs width / heads of 8 or more, not 4"):
        build("tokenizers", narrow | {"patch_size": 4, "position": "unit_rotary"}, image_size=8)


class Means(nn.Module):
    """A teacher whose one map is the mean colour of every patch."""

    name, widths = "means", (3,)

    def maps(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, 4)]


def test_features_are_predicted_from_the_decoder_input_with_masks_for_the_rest():
    """RecTok's semantic decoder: the same noised codes, at all places."""
    shape = HeadShape(blocks=1, width=12, heads=3, layers=1, mask=True)
    loss = FeatureCosine(Tap(Means()), 4, [4, 4], source="shown", head=shape)
    tokenizer = randomised(vit(**DROP), 1).train()
    node = {"kind": "feature_cosine", "source": "shown"}
    weights = {"pixel": 0.0, "feature_cosine": 1.0}
    losses = {"pixel": {"kind": "pixel"}, "alignment": node}
    of = Phase(Loop(1, {"tokenizer": 1e-3}), weights, losses, perturbation={"kind": "interpolated", "shift": 2.0})
    task = Reconstruction(tokenizer, of, {"pixel": Pixel(), "alignment": loss})
    ((_, terms),) = task.turns(ImageBatch(pictures()), step(), 0)
    sum(terms.values()).backward()
    assert tokenizer.encoder.projection.weight.grad.abs().sum() > 0
    assert loss.head.net.mask_token.grad.abs().sum() > 0
    assert FeatureCosine.needs(Arguments.complete(FeatureCosine, {"head": shape})) == ("kept",)
    assert VitAutoencoder.capabilities(Arguments.complete(VitAutoencoder, SIZES | DROP)).features == ("kept",)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 5}, "width of 24 is not divisible by 5 heads"),
        ({"decoder_width": 20}, "width of 20 is not divisible by 3 heads"),
        ({"heads": 4}, "position=rotary needs width / heads divisible by 4, not 6"),
        ({"heads": 8, "position": "rotary_sequence"}, "rotary_sequence needs width / heads divisible by 2, not 3"),
        ({"width": 18, "position": "fixed"}, "position=fixed needs a width divisible by 4, not 18"),
        ({"patch_size": 5}, "16 pixels do not divide by patch_size 5"),
        ({"token_drop": [0.4, -0.1]}, r"token_drop is \[0.4, -0.1\]; state the least and the largest fraction"),
        ({"token_drop": [0.4, 1.0]}, "the larger one second and below 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_without_building(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        VitAutoencoder.geometry(
            Arguments.complete(VitAutoencoder, {"image_size": 16, "bottleneck": CODES} | SIZES | changes)
        )
    assert "\n" not in str(caught.value)


def test_new_weights_are_xaviers_or_truncated_normal():
    """RecTok's: std 0.02 of every matrix and kernel, whatever its size."""
    arguments = {"image_size": 16, "bottleneck": {"kind": "gaussian", "dim": 8}, "width": 96, "depth": 1, "heads": 4}
    made = VitAutoencoder(**arguments, patch_size=4, initialisation="truncated")
    for layer in (
        made.encoder.patch_embedding,
        made.encoder.transformer.blocks[0].attention.qkv,
        made.decoder.embedding,
    ):
        assert abs(layer.weight.std() - 0.02) < 0.001 and layer.bias.eq(0).all() and layer.weight.abs().max() < 0.2
    usual = VitAutoencoder(**arguments, patch_size=4).encoder.transformer.blocks[0].attention.qkv.weight
    assert abs(usual.std() / (2 / sum(usual.shape)) ** 0.5 - 1) < 0.05
