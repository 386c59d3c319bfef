"""LARP: its prior and what learns from it, the share of its own ids, its rate, clips, and what is refused."""

import numpy as np
import pytest
import torch
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.code import Code
from pipeline.components import Arguments, build
from pipeline.datasets.shapes import Shapes
from pipeline.draws import StepDraws
from pipeline.losses.pixel import Pixel
from pipeline.recipes.building import count_parameters
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.larp import Larp
from pipeline.training.optimizing import make_optimizer
from pipeline.training.reconstruction import Reconstruction

CODES = {"kind": "vector_quantize", "dim": 4, "vocab": 16, "sampling_temperature": 0.06}
SIZES = {"tokens": 6, "width": 24, "depth": 1, "heads": 3, "patch_size": 4}
PRIOR = {"prior_width": 16, "prior_depth": 1, "prior_heads": 2, "prior_dropout": 0.0}


def larp(**changes) -> Larp:
    return randomised(Larp(**({"image_size": 16, "bottleneck": CODES} | SIZES | PRIOR | changes)), 0)


def pictures(*shape: int) -> Tensor:
    return torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def step(number: int = 0, count: int = 2) -> StepDraws:
    return StepDraws(0, number, slice(0, count), count)


def test_the_prior_teaches_the_encoder_and_itself_and_neither_codebook_nor_decoder():
    tokenizer = larp().train()
    tokenizer(pictures(16, 16), draws=step()).terms["prior"].backward()
    assert tokenizer.encoder.projection.weight.grad.abs().sum() > 0
    assert tokenizer.prior.head.weight.grad.abs().sum() > 0
    assert tokenizer.neck.codebook.grad is None or tokenizer.neck.codebook.grad.abs().sum() == 0
    assert all(parameter.grad is None for parameter in tokenizer.decoder.parameters())


@torch.no_grad()
def test_no_prediction_depends_on_a_later_token():
    tokenizer = larp()
    z = torch.nn.functional.normalize(torch.randn(1, 6, 4), dim=-1)
    changed = z.clone()
    changed[:, 3] = -changed[:, 3]
    before, after = (tokenizer.prior(each[:, :-1]) for each in (z, changed))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(dim=-1).min() > 1e-5


@torch.no_grad()
def test_later_rounds_read_more_of_the_priors_own_ids_as_training_goes_on():
    tokenizer = larp(prior_rise=10, prior_share=1.0).train()
    code = Code(z=torch.nn.functional.normalize(torch.randn(2, 6, 4), dim=-1), ids=torch.zeros(2, 6).long())
    first, second = tokenizer.prior_logits(code, step(0))
    torch.testing.assert_close(first, second)  # none yet
    first, second = tokenizer.prior_logits(code, step(10))
    torch.testing.assert_close(first[:, 0], second[:, 0])  # the first token is never replaced
    assert (first[:, 1:] - second[:, 1:]).abs().max() > 1e-4
    assert len(tokenizer.prior_logits(code, None)) == 1


def test_ids_are_drawn_in_training_and_are_the_nearest_elsewhere():
    tokenizer = larp(bottleneck=CODES | {"sampling_temperature": 5.0})
    images = pictures(16, 16)
    with torch.no_grad():
        nearest = tokenizer.eval().encode(images, draws=step(1)).ids
        drawn = [tokenizer.train()(images, draws=step(number)).code.ids for number in range(4)]
    assert torch.equal(nearest, tokenizer.eval().encode(images).ids)
    assert any(not torch.equal(ids, nearest) for ids in drawn)


def test_the_prior_learns_at_a_rate_of_its_own():
    tokenizer = larp()
    names = (*tokenizer.terms(Arguments.from_config(tokenizer)), "pixel")
    loop = Loop(1, {"tokenizer": 1e-3, "new": 5e-2})
    task = Reconstruction(tokenizer, Phase(loop, dict.fromkeys(names, 1.0)), {"pixel": Pixel("l2")})
    optimizer = make_optimizer(loop, "tokenizer", task.players["tokenizer"], task.new["tokenizer"])
    ours = {id(p) for p in tokenizer.prior.parameters()}
    named = {group["rate"]: {id(p) for p in group["params"]} for group in optimizer.param_groups if "rate" in group}
    assert ours == named["new"]


def test_clips_of_shapes_are_learned():
    """Frames of moving shapes, by the class itself: their error halves, and their order is kept."""
    torch.manual_seed(0)
    source = Shapes(images=8, size=16)
    frames = np.stack([[np.asarray(frame) for frame in source.clip(i, 4)] for i in range(8)])  # [B, T, H, W, 3]
    clips = torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 127.5 - 1
    sizes = {"width": 48, "depth": 2, "frames": 4, "frame_patch": 2, "patch_size": 8, "tokens": 8}
    tokenizer = Larp(image_size=16, bottleneck=CODES | {"vocab": 64}, **(SIZES | PRIOR | sizes)).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    errors = []
    for number in range(60):
        rebuilt = tokenizer(clips, draws=step(number, 8))
        errors.append(torch.nn.functional.mse_loss(rebuilt.images, clips))
        terms = rebuilt.terms
        loss = errors[-1] + 0.1 * terms["vq"] + 0.025 * terms["commit"] + 0.006 * terms["prior"]
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert rebuilt.images.shape == clips.shape and errors[-1] < 0.5 * errors[0]
    with torch.no_grad():
        code = tokenizer.eval().encode(clips)
        assert torch.equal(tokenizer.decode(Code(ids=code.ids)), tokenizer.decode(code))


def test_the_first_frame_of_a_moving_shape_is_the_image():
    source = Shapes(images=2, size=16)
    clip = source.clip(1, 3)
    assert np.array_equal(np.asarray(clip[0]), np.asarray(source.read(1).image))
    assert not np.array_equal(np.asarray(clip[0]), np.asarray(clip[2]))


def test_the_published_size_is_that_of_the_paper():
    """21.7 M of the prior, and 173 M of the rest, of which a fixed table of positions is one here, no parameter."""
    node = {"kind": "larp", "tokens": 1024, "width": 768, "depth": 12, "heads": 12, "frames": 16, "frame_patch": 4}
    node["bottleneck"] = CODES | {"dim": 16, "vocab": 8192}
    with torch.device("meta"):
        tokenizer = build("tokenizers", node, image_size=128)
    prior = count_parameters(tokenizer.prior)
    table = tokenizer.decoder.queries.numel()
    assert round((count_parameters(tokenizer) - prior + table) / 1e6) == 173 and round(prior / 1e6, 1) == 21.7


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bottleneck": {"kind": "identity", "dim": 4}}, "the prior predicts the ids of one codebook"),
        ({"image_size": 18}, "patch_size 4"),
        ({"frames": 3, "frame_patch": 2}, "patches of 2 frames do not fill 3 frames"),
        ({"prior_heads": 3}, "a width of 16 is not divisible by 3 heads"),
        ({"width": 30}, "a width divisible by 4, not 30"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        larp(**changes)


def test_images_and_clips_are_told_apart():
    with pytest.raises(ValueError, match="reads images, not 4 frames"):
        larp().encode(pictures(4, 16, 16))
    with pytest.raises(ValueError, match="reads clips of 4 frames, not images"):
        larp(frames=4, frame_patch=2).encode(pictures(16, 16))
    with pytest.raises(ValueError, match="reads clips of 4 frames, not 2 frames"):
        larp(frames=4, frame_patch=2).encode(pictures(2, 16, 16))
