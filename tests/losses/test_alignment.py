"""Alignment with a frozen teacher: what losses ask for, how heads are trained, and how weights are balanced."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.two_processes import as_two
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights
from pipeline.code import Batched, Code, LatentSpec
from pipeline.components import Arguments, build
from pipeline.draws import GivenDraws, StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.base import Alignment
from pipeline.losses.pixel import Pixel
from pipeline.nn.feature_head import FeatureHead, HeadShape
from pipeline.nn.latent_head import standardize
from pipeline.perturbations.interpolated import Interpolated
from pipeline.recipes.building import output_layout
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.base import Tap
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.latent_vit import LatentViT
from pipeline.tokenizers.titok import TiTok
from pipeline.tokenizers.vit_autoencoder import VitAutoencoder
from pipeline.training import loss_heads
from pipeline.training.loop import TrainingRun, train
from pipeline.training.loss_heads import (
    TokenizerWithHeads,
    at_positions,
    attach_heads,
    carry_heads,
    detach_heads,
    save_heads,
)
from pipeline.training.reconstruction import Reconstruction

LAYER = "encoder.conv_out.weight"
GRID, DIM = [8, 8], 3
SMALL_MLP = {"layers": 2, "hidden": 16}
BLOCK = {"blocks": 1, "width": 8, "heads": 2, "layers": 1}


def tap(index: int = 1) -> Tap:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tap(Classifier(num_classes=3, width=8), index)


def aligned(kind: str, **arguments) -> Alignment:
    torch.manual_seed(4)
    return build("losses", {"kind": kind} | arguments, extractor=tap(), dim=DIM, grid=GRID)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def draws(rows: slice = slice(0, 4), step: int = 0) -> StepDraws:
    return StepDraws(0, step, rows, 4)


def task_of(kind: str = "relational", weight: float = 0.3, balanced: bool = False, **arguments) -> Reconstruction:
    torch.manual_seed(1)
    tokenizer = ConvAutoencoder(16, {"kind": "gaussian", "dim": DIM}, width=8, multipliers=[1, 2], blocks=1)
    losses = {"pixel": {"kind": "pixel"}, "alignment": {"kind": kind}}
    weights = {"pixel": 1.0, "kl": 1e-3, kind: weight}
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), weights, losses, balance={kind: LAYER} if balanced else {})
    return Reconstruction(tokenizer, phase, {"pixel": Pixel(), "alignment": aligned(kind, **arguments)})


def terms_of(task: Reconstruction) -> dict[str, Tensor]:
    ((_, terms),) = task.turns(ImageBatch(images()), draws(), 0)
    return terms


def descended(loss: Alignment, z: Tensor, aims: Tensor, steps: int = 60) -> tuple[float, float]:
    """The term before and after some steps on the code and the head, and it is the term that is descended."""
    z = z.clone().requires_grad_()
    moved = [z, *(loss.head.parameters() if loss.head is not None else [])]
    optimizer, (term,) = torch.optim.Adam(moved, 3e-2), loss.terms
    values = []
    for _ in range(steps):
        made = z if loss.head is None else loss.head(z, None, {}, draws())
        value = loss.compare(made, aims)[term]
        values.append(float(value.detach()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return values[0], values[-1]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("relational", {}),
        ("gram", {}),
        ("feature_cosine", {"head": {"layers": 1}}),
        ("feature_cosine", {"head": SMALL_MLP, "source": "noised"}),
        ("feature_cosine", {"head": BLOCK, "standardize": True}),
    ],
)
def test_every_term_pulls_codes_towards_the_teacher(kind, arguments):
    loss = aligned(kind, **arguments)
    aims = loss.tap(images(), GRID)
    before, after = descended(loss, torch.randn(4, 64, DIM), aims)
    assert after < 0.75 * before and loss.name == "classifier"
    assert all("classifier" in name for name in loss.metrics)


def test_relational_is_as_its_equations_say_and_nothing_within_its_margins():
    z, f = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    value = aligned("relational", cosine_margin=0.2, matrix_margin=0.1, matrix_weight=2.0).compare(z, f)["relational"]
    cosine = matrix = 0.0
    for b in range(2):
        for i in range(5):
            cosine += max(0.0, 1 - 0.2 - float(F.cosine_similarity(z[b, i], f[b, i], dim=0))) / 10
            for j in range(5):
                pair = [float(F.cosine_similarity(x[b, i], x[b, j], dim=0)) for x in (z, f)]
                matrix += max(0.0, abs(pair[0] - pair[1]) - 0.1) / 50
    assert float(value) == pytest.approx(cosine + 2 * matrix, rel=1e-5)
    near = (f + 0.1 * torch.randn_like(f)).requires_grad_()
    inside = aligned("relational").compare(near, f)["relational"]
    inside.backward()
    assert inside == 0 and near.grad.abs().sum() == 0
    assert aligned("relational", cosine_margin=0.0, matrix_margin=0.0).compare(near, f)["relational"] > 0
    with pytest.raises(ValueError, match="matrix_margin is -0.1; give 0 or more"):
        aligned("relational", matrix_margin=-0.1)


def test_gram_is_of_all_pairs_and_blind_to_turns_and_lengths():
    z, f = torch.randn(2, 6, 4), torch.randn(2, 6, 9)
    expected = torch.zeros(())
    for b in range(2):
        for i in range(6):
            for j in range(6):
                pair = [F.cosine_similarity(x[b, i], x[b, j], dim=0) for x in (z, f)]
                expected = expected + (pair[0] - pair[1]) ** 2 / 72
    torch.testing.assert_close(aligned("gram").compare(z, f)["gram"], expected)
    turn = torch.linalg.qr(torch.randn(9, 9)).Q
    assert aligned("gram").compare(3 * f @ turn, f)["gram"] < 1e-10


def test_a_head_is_linear_layers_or_blocks_before_them():
    tokens = torch.randn(2, 64, DIM)
    linear = FeatureHead(DIM, 5, GRID, HeadShape(layers=1), bias=False)
    torch.testing.assert_close(linear(tokens), tokens @ linear.layers[0].weight.T)
    mlp = FeatureHead(DIM, 5, GRID, HeadShape(layers=3, hidden=7))
    assert [type(part).__name__ for part in mlp.layers] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    one = tokens.clone()
    one[:, 9] += 1
    moved = [(head(one) != head(tokens)).any(dim=2) for head in (mlp, FeatureHead(DIM, 5, GRID, HeadShape(**BLOCK)))]
    assert moved[0].sum() == 2 and moved[1].all(), "blocks let every place see the others"
    masked = FeatureHead(DIM, 5, GRID, HeadShape(**BLOCK, mask=True))
    kept = torch.ones(2, 64, dtype=torch.bool)
    kept[:, 9] = False
    assert torch.equal(masked(one, kept), masked(tokens, kept)) and not torch.equal(masked(one), masked(tokens))
    for wrong in ({"layers": 0}, {"blocks": 1, "width": 10, "heads": 3}, {"mask": True}):
        with pytest.raises(ValueError):
            HeadShape(**wrong)


def test_a_head_sees_the_code_clean_noised_or_as_the_decoder_is_shown_it():
    z, perturbed = torch.randn(4, 64, DIM), torch.randn(4, 64, DIM)
    t, noise = torch.rand(4, 1, 1), torch.randn(4, 64, DIM)
    given = GivenDraws({"alignment.level": t, "alignment.noise": noise})
    heads = {source: aligned("feature_cosine", source=source, head=SMALL_MLP).head for source in ("clean", "perturbed")}
    heads["noised"] = aligned("feature_cosine", source="noised", shift_base=48, head=SMALL_MLP).head
    s = (64 * DIM / 48) ** 0.5
    u = s * t / (1 + (s - 1) * t)
    expected = {"clean": z, "perturbed": perturbed, "noised": (1 - u) * z + u * noise}
    for source, head in heads.items():
        assert torch.equal(head(z, perturbed, {}, given), head.net(expected[source])), source
    assert torch.equal(heads["perturbed"](z, None, {}, given), heads["perturbed"].net(z))
    code = Code(z)
    both = GivenDraws({"perturbation.level": t, "perturbation.noise": noise})
    both.places, both.batch = slice(0, 4), 4
    torch.testing.assert_close(Interpolated(shift_base=48).perturb(None, z, code, both, 0), expected["noised"])


def test_what_the_decoder_is_shown_of_kept_places_is_put_in_its_place():
    kept = torch.tensor([[True, False, True], [False, True, True]])
    perturbed = torch.arange(1.0, 9).view(2, 2, 2)
    full = at_positions(perturbed, torch.randn(2, 3, 2), {"kept": kept})
    assert torch.equal(full[kept], perturbed.flatten(0, 1)) and full[~kept].abs().sum() == 0
    assert at_positions(full, full, {}) is full


def test_the_mean_can_be_over_dropped_places_alone():
    loss = aligned("feature_cosine", positions="dropped", head=BLOCK | {"mask": True})
    made, aims, kept = torch.randn(2, 64, 8), torch.randn(2, 64, 8), torch.rand(2, 64) < 0.6
    value = loss.compare(made, aims, kept)["feature_cosine"]
    torch.testing.assert_close(value, 1 - F.cosine_similarity(made[~kept], aims[~kept], dim=-1).mean())
    for positions, needed in (("dropped", ("kept",)), ("all", ())):
        assert loss.needs(Arguments.complete(type(loss), {"positions": positions})) == needed


def test_standardized_codes_have_no_mean_or_scale_of_their_own():
    z = torch.randn(4, 64, DIM)
    torch.testing.assert_close(standardize(5 * z + 2), standardize(z), atol=1e-3, rtol=1e-3)
    other = nn.functional.batch_norm(z.mT, None, None, training=True, eps=1e-4).mT
    torch.testing.assert_close(standardize(z), other, atol=1e-5, rtol=1e-4)


def test_the_balanced_weight_gives_a_term_the_gradient_of_the_pixels_whatever_its_scale():
    """Doubling the term leaves its gradient; at the layer it is as long as the pixels', times the recipe's weight."""
    found = {}
    for factor in (1.0, 2.0):
        task = task_of("relational", 0.5, balanced=True, cosine_weight=factor, matrix_weight=factor)
        terms = terms_of(task)
        layer = detach_heads(task.players["tokenizer"])[0].get_parameter(LAYER)
        found[factor] = [
            torch.autograd.grad(terms[name], layer, retain_graph=True)[0] for name in ("pixel", "relational")
        ]
        torch.testing.assert_close(found[factor][1].norm(), 0.5 * found[factor][0].norm(), rtol=5e-3, atol=0)
        assert task.metrics["balanced_weight_relational"] != 0.5
    torch.testing.assert_close(found[1.0][1], found[2.0][1], rtol=5e-3, atol=1e-6)
    fixed = [terms_of(task_of("relational", 0.5, cosine_weight=f, matrix_weight=f))["relational"] for f in (1.0, 2.0)]
    torch.testing.assert_close(fixed[1], 2 * fixed[0])


def test_the_balanced_weight_is_at_most_the_largest_of_the_phase():
    task = task_of("relational", 0.5, balanced=True)
    terms_of(task)
    free = task.metrics["balanced_weight_relational"]
    task.phase = replace(task.phase, balance_largest=free.item() / 0.5 / 4)
    terms_of(task)
    torch.testing.assert_close(task.metrics["balanced_weight_relational"], free / 4)


def test_a_balance_that_cannot_be_is_refused():
    tokenizer = task_of().players["tokenizer"].model
    losses = {"pixel": Pixel(), "alignment": aligned("relational")}
    weights = {"pixel": 1.0, "kl": 1e-3, "relational": 0.1}
    nodes = {"pixel": {"kind": "pixel"}, "alignment": {"kind": "relational"}}
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), weights, nodes)
    for balance, words, train_part in (
        ({"relation": LAYER}, "there is no loss term 'relation'; did you mean 'relational'", "all"),
        ({"pixel": LAYER}, "balance.pixel: this term is of pixels", "all"),
        ({"relational": "encoder.conv_out.wight"}, f"there is no parameter .*did you mean '{LAYER}'", "all"),
        ({"relational": LAYER}, "train=decoder does not train encoder", "decoder"),
    ):
        with pytest.raises(ValueError, match=words):
            Reconstruction(tokenizer, replace(phase, balance=balance, train=train_part), losses)


def test_heads_are_trained_with_the_tokenizer_and_the_teacher_is_not():
    task = task_of("feature_cosine", source="noised", head=BLOCK)
    player, loss = task.players["tokenizer"], task.losses["alignment"]
    assert isinstance(player, TokenizerWithHeads) and player.heads["feature_cosine"] is loss.head
    assert not [name for name, _ in player.named_parameters() if "teacher" in name]
    sum(terms_of(task).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.head.parameters())
    assert all(p.grad is None and not p.requires_grad for p in loss.tap.parameters())
    assert player.model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert "cosine_classifier" in task.metrics


def test_a_module_of_the_tokenizer_may_be_aligned_in_place_of_its_code():
    """GigaTok's: a layer of the decoder, which the encoder hears of through the code."""
    torch.manual_seed(1)
    tokenizer = ConvAutoencoder(16, {"kind": "gaussian", "dim": DIM}, width=8, multipliers=[1, 2], blocks=1)
    shadow = ConvAutoencoder(16, {"kind": "gaussian", "dim": DIM}, width=8, multipliers=[1, 2], blocks=1).to("meta")
    assert output_layout(shadow, "decoder.mid_block") == ([8, 8], 16)
    node = {"kind": "feature_cosine", "at": "decoder.mid_block", "head": SMALL_MLP}
    loss = build("losses", node, extractor=tap(), dim=16, grid=GRID)
    seen = []
    tokenizer.decoder.mid_block.register_forward_hook(lambda module, given, made: seen.append(made))
    player = attach_heads(tokenizer, [loss])
    rebuilt = player(images(), None, draws())
    assert torch.equal(rebuilt.head_outputs["feature_cosine"], loss.head(seen[0].flatten(2).mT))
    loss(images(), rebuilt)["feature_cosine"].backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0 and tokenizer.decoder.conv_out.weight.grad is None
    assert len(tokenizer.decoder.mid_block._forward_hooks) == 1, "only that of this test"
    for name, words in (("decoder.mid", "has no module 'decoder.mid'; did you mean"), ("neck", "makes no map")):
        with pytest.raises(ValueError, match=words):
            output_layout(shadow, name)


SEQUENCES = {
    "titok": (TiTok, "decoder.blocks.0"),
    "latent_vit": (LatentViT, "decoder.vit.blocks.0"),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_of_a_sequence_the_places_of_the_image_are_aligned_and_not_the_tokens_beside_them(kind):
    """GigaTok's, on a code without places: what is compared comes of the mask tokens of the decoder alone."""
    torch.manual_seed(1)
    cls, name = SEQUENCES[kind]
    arguments = {"image_size": 16, "bottleneck": {"kind": "gaussian", "dim": DIM}, "tokens": 5, "patch_size": 2}
    tokenizer = cls(**arguments, width=16, depth=1, heads=2)
    with torch.device("meta"):
        assert output_layout(cls(**arguments, width=16, depth=1, heads=2), name) == (GRID, 16)
    loss = build(
        "losses", {"kind": "feature_cosine", "at": name, "head": SMALL_MLP}, extractor=tap(), dim=16, grid=GRID
    )
    seen = []
    tokenizer.get_submodule(name).register_forward_hook(lambda module, given, made: seen.append(made))
    rebuilt = attach_heads(tokenizer, [loss])(images(), None, draws())
    assert seen[0].shape == (4, 1 + 64 + 5, 16), "a class token, the places and the tokens of the code"
    assert torch.equal(rebuilt.head_outputs["feature_cosine"], loss.head(seen[0][:, 1:65]))
    loss(images(), rebuilt)["feature_cosine"].backward()
    assert tokenizer.encoder.projection.weight.grad.abs().sum() > 0, "the encoder hears of it through the code"
    assert torch.equal(tokenizer.position_tokens("output", torch.ones(2, 3, 4, 4)), torch.ones(2, 16, 3))


def test_a_recipe_may_align_the_decoder_of_a_code_without_places_but_not_the_code():
    alignment = "tokenizer.phases.main.losses.alignment={{kind: feature_cosine, teacher: classifier{}}}"
    weight = "tokenizer.phases.main.weights.feature_cosine=0.5"
    check_recipe(load("digits_titok_dit", [alignment.format(", at: decoder.blocks.0"), weight]))
    with pytest.raises(ValueError, match=r"tokens on a grid of \[8\] have none"):
        check_recipe(load("digits_titok_dit", [alignment.format(""), weight]))


def test_patches_that_were_left_out_are_told_from_the_noised_ones_that_the_decoder_is_shown():
    """RecTok's: the head has a mask token where the encoder saw nothing, and the noise of the decoder elsewhere."""
    torch.manual_seed(1)
    neck = {"kind": "gaussian", "dim": DIM}
    tokenizer = VitAutoencoder(16, neck, width=16, depth=1, heads=2, patch_size=2, token_drop=[0.4, 0.5])
    nodes = {"pixel": {"kind": "pixel"}, "alignment": {"kind": "feature_cosine"}}
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), {"pixel": 1.0, "kl": 1e-3, "feature_cosine": 1.0}, nodes)
    phase.perturbation = {"kind": "interpolated", "shift_base": 48}
    loss = aligned("feature_cosine", source="perturbed", head=BLOCK | {"mask": True})
    task = Reconstruction(tokenizer, phase, {"pixel": Pixel(), "alignment": loss})
    task.players["tokenizer"].train()
    rebuilt = task.rebuild(ImageBatch(images()), draws(), 0)
    kept = rebuilt.features["kept"]
    assert 0 < (~kept).sum() < kept.numel() and rebuilt.decoder_input.shape == rebuilt.code.z.shape == (4, 64, DIM)
    assert (
        rebuilt.decoder_input[~kept].abs().sum() == 0
        and (rebuilt.decoder_input != rebuilt.code.z)[kept].any(dim=1).all()
    )
    assert torch.equal(rebuilt.head_outputs["feature_cosine"], loss.head.net(rebuilt.decoder_input, kept))
    sum(terms_of(task).values()).backward()
    assert loss.head.net.mask_token.grad.abs().sum() > 0


def test_without_heads_the_player_is_the_tokenizer_itself():
    task = task_of("gram")
    assert isinstance(task.players["tokenizer"], ConvAutoencoder) and detach_heads(task.players["tokenizer"])[1] == {}


def test_heads_are_kept_apart_and_gone_on_from(tmp_path, caplog):
    first, second, other = (aligned("relational") for _ in range(3))
    tokenizer = task_of().players["tokenizer"].model
    model, heads = detach_heads(attach_heads(tokenizer, [first]))
    assert model is tokenizer and not [name for name in model.state_dict() if "head" in name]
    nn.init.normal_(first.head.net.layers[0].weight)
    save_heads(heads, tmp_path / "one")
    carry_heads([second], [tmp_path / "one", tmp_path / "two"])
    assert torch.equal(second.head.net.layers[0].weight, first.head.net.layers[0].weight)
    (tmp_path / "two").mkdir()
    other.head = aligned("feature_cosine", head={"layers": 2}).head
    save_heads({"relational": other.head}, tmp_path / "two")
    before = second.head.net.layers[0].weight.clone()
    carry_heads([second], [tmp_path / "one", tmp_path / "two"])
    assert torch.equal(second.head.net.layers[0].weight, before) and "is of another make" in caplog.text


class Pictures(Batched):
    """Forty images, as a training reads them."""

    def __init__(self):
        self.all = images(40)

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Tensor, seeds: Tensor) -> ImageBatch:
        return ImageBatch(self.all[indices])


def trained(folder: Path, steps: int, last: int | None = None) -> dict[str, Tensor]:
    """The averages after `steps` of a training, which ends after step `last`."""
    task = task_of("feature_cosine", source="noised", head=BLOCK, standardize=True)
    loop = Loop(steps, {"tokenizer": 1e-3}, batch=4, save_every=2, ema=0.9)
    stop = None if last is None else (lambda step, _: step == last)
    averages = train(task, Pictures(), TrainingRun(loop, folder, 5, Accelerator(cpu=True), after_step=stop))
    return averages["tokenizer"].state_dict()


def test_a_resumed_training_with_heads_is_the_same_to_the_bit(tmp_path):
    trained(tmp_path / "resumed", 6, last=3)
    resumed, whole = trained(tmp_path / "resumed", 6), trained(tmp_path / "whole", 6)
    assert any(name.startswith("heads.") for name in whole)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


CASES = {
    "balanced": {"kind": "relational", "balanced": True},
    "noised": {"kind": "feature_cosine", "source": "noised", "head": BLOCK, "standardize": True},
}


def train_on_half(rank: int) -> list[Reconstruction]:
    """One batch of each case as process `rank` of two."""
    tasks, rows = [task_of(**case) for case in CASES.values()], slice(2 * rank, 2 * rank + 2)
    for task in tasks:
        task.players["tokenizer"] = nn.parallel.DistributedDataParallel(task.players["tokenizer"])
        for _, terms in task.turns(ImageBatch(images()[rows]), draws(rows), 0):
            sum(terms.values()).backward()
    return tasks


def test_two_processes_train_codes_and_heads_as_one(tmp_path):
    for (case, arguments), half in zip(CASES.items(), as_two(train_on_half, tmp_path), strict=True):
        alone = task_of(**arguments)
        sum(terms_of(alone).values()).backward()
        ours, theirs = half.players["tokenizer"].module, alone.players["tokenizer"]
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=2e-6, rtol=2e-4, msg=f"{case}: {name}")


def test_what_cannot_be_aligned_is_refused_in_one_line(tmp_path):
    losses = "tokenizer.phases.main.losses.alignment"
    start = [f"{losses}.kind=feature_cosine", "tokenizer.phases.main.weights.feature_cosine=1"]
    check_recipe(load("digits", [*start, f"{losses}.teacher=classifier", f"{losses}.head.layers=1"]))
    check_recipe(load("digits", [*start, f"{losses}.at=decoder.mid_block"]))
    for settings, words in (
        ([f"{losses}.head.layer=2"], "head.layer: there is no such setting; did you mean 'layers'"),
        ([f"{losses}.source=perturbed"], f"^{losses}.source is perturbed, but the phase has no perturbation"),
        ([f"{losses}.block=2"], f"^{losses}.block is for a generator's losses"),
        ([f"{losses}.at=decoder.nothing"], f"^{losses}: at: this tokenizer has no module"),
        ([f"{losses}.shift=2"], f"^{losses}: shift and shift_base are of source: noised"),
        ([f"{losses}.positions=dropped"], f"^{losses}: feature_cosine reads kept, which this tokenizer does not make"),
        ([f"{losses}.teacher=dinov2_large"], "weights dinov2_large are not on this machine"),
        ([f"{losses}.dim=3"], f"^{losses}.dim is determined"),
        (["tokenizer.phases.main.train=decoder"], f"^{losses}: feature_cosine trains codes, and train=decoder leaves"),
        (["tokenizer.phases.main.balance.feature_cosine=encoder.x"], r"^tokenizer.phases.main.balance.*no parameter"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            check_recipe(load("digits", [*start, *settings]))
            check_weights(load("digits", [*start, *settings]))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^posttrain.phase.balance is for terms that are not of pixels"):
        check_recipe(load("digits_robust_ar", [f"posttrain.phase.balance.pixel={LAYER}"]))
    with pytest.raises(ValueError, match=r"tokens on a grid of \[32\] have none"):
        Alignment.validate(LatentSpec((32,), 4), Arguments({}))
    assert loss_heads.FOLDER == "heads" and TokenizerOutput(None, Code(torch.zeros(1)), {}).head_outputs == {}
