"""FQGAN: branches of a shared trunk, codes that are told apart, each branch's teacher, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from support.tiny_pipeline import randomised
from torch import Tensor, nn

from pipeline.bottlenecks.factorised import Factorised, disentangle
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, build
from pipeline.draws import StepDraws
from pipeline.losses.branch_contrast import BranchContrast
from pipeline.losses.middle_branch_contrast import MiddleBranchContrast
from pipeline.losses.pixel import Pixel
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.fqgan import FQGAN
from pipeline.training.loss_heads import attach_heads
from pipeline.training.reconstruction import Reconstruction

PART = {"kind": "vector_quantize", "dim": 4, "vocab": 12}
SIZES = {"adapter_depth": 1, "adapter_heads": 2, "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}


def codes(count: int) -> dict:
    return {"kind": "factorised", "codebooks": count, "bottleneck": PART}


def fqgan(branches: int = 2, **changes) -> FQGAN:
    arguments = {"image_size": 8, "bottleneck": codes(branches), "branches": branches, "z_channels": 6} | SIZES
    return FQGAN(**(arguments | changes)).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


class Brightness(nn.Module):
    """A teacher that tells images apart by the colours of their quarters."""

    name, width = "brightness", 12

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def test_orthogonal_codes_cost_nothing_and_equal_ones_cost_one():
    units = torch.eye(4).expand(2, 4, 4)  # of every token another axis
    assert disentangle((units, units.roll(1, dims=2))) == 0
    assert disentangle((units, -3 * units)) == 1
    assert disentangle((units, units, units.roll(1, dims=2))) == pytest.approx(1 / 3)
    half = (units + units.roll(1, dims=2)) / 2
    torch.testing.assert_close(disentangle((units, half)), torch.tensor(0.5))
    assert disentangle((units,)) == 0


def test_training_on_the_term_alone_makes_the_streams_orthogonal_and_moves_no_codebook():
    torch.manual_seed(0)
    neck = build("bottlenecks", codes(2))
    layer = nn.Linear(5, 8)
    h = torch.randn(16, 9, 5)
    optimizer, values = torch.optim.Adam(layer.parameters(), lr=0.02), []
    for _ in range(150):
        code, terms = neck(layer(h))
        optimizer.zero_grad()
        terms["disentangle"].backward()
        assert all(part.codebook.grad is None for part in neck.parts)
        optimizer.step()
        values.append(terms["disentangle"].item())
    assert sum(values[-10:]) < 0.5 * sum(values[:10])
    assert isinstance(neck, Factorised) and set(terms) == {"vq", "commit", "disentangle"}


def test_every_branch_has_ids_of_its_own_and_reads_the_whole_image():
    tokenizer = randomised(fqgan(3), seed=1)
    assert tokenizer.spec == LatentSpec((4, 4), 12, 12, 3)
    ids = tokenizer.encode(pictures()).ids
    assert ids.shape == (3, 16, 3)
    assert all(not torch.equal(ids[..., i], ids[..., j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    before, changed = tokenizer.features(pictures()), pictures()
    changed[:, :, 0, 0] += 1
    assert (tokenizer.features(changed) != before).all(dim=0).any(dim=-1).all()  # an adapter sees every place
    with torch.no_grad():
        tokenizer.adapters[1].conv_out.weight.add_(1)
    moved = (tokenizer.features(pictures()) != before).any(dim=0).any(dim=0)
    assert moved.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    decoded = tokenizer.decode(Code(ids=ids))
    for codebook in range(3):
        other = ids.clone()
        other[..., codebook] = (other[..., codebook] + 1) % 12
        assert not torch.equal(tokenizer.decode(Code(ids=other)), decoded)


def test_a_branch_is_taught_by_its_own_teacher_alone():
    tokenizer = randomised(fqgan(3), seed=1).train()
    place = {"branches": 3, "depth": 1, "heads": 2}
    losses = [
        MiddleBranchContrast(Brightness(), 12, [4, 4], branch=1, **place),
        BranchContrast(Brightness(), 12, [4, 4], branch=2, **place),
    ]
    rebuilt = attach_heads(tokenizer, losses)(pictures())
    for loss, taught in zip(losses, (1, 2)):
        (term,) = loss.terms
        tokenizer.zero_grad()
        loss(pictures(), rebuilt)[term].backward(retain_graph=True)
        reached = [bool(branch.quant_conv.weight.grad.any()) for branch in tokenizer.adapters]
        assert reached == [number == taught for number in range(3)]
        assert set(loss.metrics) == {f"{term}_match_brightness"}


def test_the_contrast_is_smallest_where_every_code_is_nearest_to_its_own_image():
    loss = BranchContrast(Brightness(), 8, [4, 4], branch=1, branches=2, depth=1, heads=2, temperature=0.1)
    aims, images = Brightness()(pictures(4)), pictures(4)

    def value(tokens: Tensor) -> float:
        rebuilt = attach_heads(fqgan(), [loss])(images)
        rebuilt.head_outputs["branch_contrast"] = tokens
        return float(loss(images, rebuilt)["branch_contrast"])

    assert value(aims) < value(aims.roll(1, dims=0))
    assert (
        value(aims) == pytest.approx(value(5 * aims), abs=1e-5)
        and loss.metrics["branch_contrast_match_brightness"] == 1
    )


def test_a_training_step_has_all_terms_and_learns_to_match():
    torch.manual_seed(0)
    tokenizer = fqgan()
    weights = {"pixel": 1.0, "vq": 2.0, "commit": 0.5, "disentangle": 0.1, "branch_contrast": 0.5}
    losses = {"pixel": {"kind": "pixel"}, "semantic": {"kind": "branch_contrast", "depth": 1, "heads": 2}}
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), weights, losses)
    semantic = BranchContrast(Brightness(), 8, [4, 4], depth=1, heads=2, temperature=0.1)
    task = Reconstruction(tokenizer, phase, {"pixel": Pixel(), "semantic": semantic})
    optimizer = torch.optim.Adam(task.players["tokenizer"].parameters(), lr=3e-3)
    values = []
    for step in range(60):
        draws = StepDraws(0, step, slice(0, 6), 6)
        rebuilt = task.players["tokenizer"](pictures(6), draws=draws)
        terms = task.tokenizer_terms(pictures(6), pictures(6), rebuilt, 0.0, draws)
        assert set(terms) == set(weights)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        values.append(terms["branch_contrast"].item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"branches": 3, "bottleneck": codes(2)}, "branches is 3, which does not divide 8 channels"),
        ({"adapter_heads": 3}, "not divisible by 3 heads"),
        ({"attention": [2]}, "attention names level 2"),
        ({"decoder_multipliers": [1]}, "decoder_multipliers must have 2 levels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fqgan(**changes)


def test_images_of_another_size_and_branches_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="reads images of 8x8"):
        fqgan().features(torch.zeros(1, 3, 16, 16))
    arguments = Arguments.complete(BranchContrast, {"branch": 2, "branches": 2})
    with pytest.raises(ValueError, match="branch is 2 of 2"):
        BranchContrast.validate(fqgan().spec, arguments)
    with pytest.raises(ValueError, match="heads is 5"):
        BranchContrast(Brightness(), 8, [4, 4], heads=5)
