"""A call of a LatentPipeline does what people who know diffusers expect, and says in one line what is wrong."""

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from PIL import Image
from support.fresh_process import run_fresh
from support.tiny_pipeline import fails, generators, make_pipeline, pixels
from torch import Generator

import pipeline.saved_folders
from pipeline.code import Code, Condition
from pipeline.draws import ImageDraws
from pipeline.samplers.guidance import Guidance


def test_importing_the_package_imports_no_torch():
    imported = run_fresh("import sys, pipeline; print(*sys.modules)").split()
    assert "pipeline" in imported and not {"torch", "diffusers"} & set(imported)
    with pytest.raises(AttributeError, match="LatentPipelin'"):
        getattr(pipeline, "LatentPipelin")  # noqa: B009  a name that is not there


def test_it_samples_what_its_parts_sample(pipe):
    draws = ImageDraws(generators(3, 4))
    condition = Condition(labels=torch.tensor([1, 2]))
    code = pipe.objective.sample(pipe.request(condition, draws, 3, Guidance(2.0)))
    with torch.no_grad():
        expected = (pipe.tokenizer.decode(code) / 2 + 0.5).clamp(0, 1)
    assert torch.equal(pixels(pipe, [1, 2], [3, 4]), expected)
    assert expected.std() > 0.02


def test_labels_by_number_name_and_tensor(pipe):
    by_number = pixels(pipe, [1, 0], [0, 1])
    assert torch.equal(by_number, pixels(pipe, ["great white shark", "zero"], [0, 1]))
    assert torch.equal(by_number, pixels(pipe, torch.tensor([1, 0]), [0, 1]))
    assert torch.allclose(by_number[:1], pixels(pipe, "great white shark", [0]), atol=1e-5)
    assert torch.equal(pixels(pipe, "bird", [0]), pixels(pipe, 2, [0]))
    assert len(pixels(pipe, 3, [0, 1, 2], num_images=3)) == 3


def test_labels_that_are_not_there_are_refused(pipe):
    fails(pipe, "did you mean 'great white shark'", "great whte shark")
    fails(pipe, "several classes are called 'crane': 2, 3", "crane")
    fails(pipe, "label 4 is out of range; there are 4 classes", 4)
    fails(pipe, "label -1 is out of range", [-1])
    fails(pipe, "neither a label nor a class name", [True])
    fails(pipe, "neither a label nor a class name", [1.5])
    fails(pipe, "needs class_labels")
    fails(pipe, "0 class_labels", [])
    fails(pipe, "2 class_labels for num_images=3", [0, 1], num_images=3)


def test_an_image_depends_on_its_label_and_generator_alone(pipe):
    together = pixels(pipe, [0, 1, 2, 3], [5, 6, 7, 8])
    alone = torch.cat([pixels(pipe, [label], [seed]) for label, seed in zip([0, 1, 2, 3], [5, 6, 7, 8])])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(pixels(pipe, [3, 1], [8, 6]), together[[3, 1]], atol=1e-5)
    assert (together[0] - pixels(pipe, [0], [6])[0]).abs().max() > 1e-3
    noisy = {"solver": "sde", "num_inference_steps": 4}
    both = pixels(pipe, [0, 1], [5, 6], **noisy)
    assert torch.allclose(both[1:], pixels(pipe, [1], [6], **noisy), atol=1e-5)


def test_one_generator_is_drawn_from_image_by_image(pipe):
    one = pipe([0, 1], generator=Generator().manual_seed(9), output_type="pt").images
    first = Generator().manual_seed(9)
    apart = [pipe(label, generator=first, output_type="pt").images for label in (0, 1)]
    assert torch.allclose(one, torch.cat(apart), atol=1e-5)
    fails(pipe, "3 generators for 2 images", [0, 1], generator=generators(1, 2, 3))
    torch.manual_seed(4)
    drawn = pipe([0, 0], output_type="pt").images
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    torch.manual_seed(4)
    assert torch.equal(drawn, pipe([0, 0], output_type="pt").images)


def test_latents_are_the_noise_to_start_from(pipe):
    noise = torch.stack([torch.randn(16, 3, generator=g) for g in generators(5, 6)])
    expected = pixels(pipe, [0, 1], [5, 6])
    assert torch.equal(pipe([0, 1], latents=noise, output_type="pt").images, expected)
    as_map = noise.transpose(1, 2).unflatten(2, (4, 4))
    assert torch.equal(pipe([0, 1], latents=as_map, output_type="pt").images, expected)
    fails(pipe, r"latents are \[2, 16, 3\]; 1 images need \[1, 16, 3\] or \[1, 3, 4, 4\]", 0, latents=noise)


def test_every_output_type_is_the_same_image(pipe):
    tensor = pixels(pipe, [0, 1], [0, 1])
    array = pipe([0, 1], generator=generators(0, 1), output_type="np").images
    images = pipe([0, 1], generator=generators(0, 1)).images
    (codes,) = pipe([0, 1], generator=generators(0, 1), output_type="latent", return_dict=False)
    assert tensor.shape == (2, 3, 16, 16) and tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert isinstance(images[0], Image.Image) and np.array_equal(np.asarray(images[1]), (array[1] * 255).round())
    assert codes.shape == (2, 16, 3)
    with torch.no_grad():
        assert torch.equal((pipe.decode(Code(z=codes)) / 2 + 0.5).clamp(0, 1), tensor)
    fails(pipe, "output_type 'pli' is not one of", 0, output_type="pli")


def test_slicing_decodes_one_by_one(pipe, monkeypatch):
    whole, sizes = pixels(pipe, [0, 1, 2], [0, 1, 2]), []
    decode = type(pipe.tokenizer).decode
    monkeypatch.setattr(
        type(pipe.tokenizer), "decode", lambda self, *given: (sizes.append(len(given[0])), decode(self, *given))[1]
    )
    pipe.enable_slicing()
    sliced = pixels(pipe, [0, 1, 2], [0, 1, 2])
    pipe.disable_slicing()
    pixels(pipe, [0, 1], [0, 1])
    assert sizes == [1, 1, 1, 2] and torch.allclose(whole, sliced, atol=1e-5)


def test_settings_of_the_sampler_and_of_guidance(pipe):
    plain = pixels(pipe, [0], [0])
    assert torch.equal(plain, pixels(pipe, [0], [0], num_inference_steps=3, guidance_scale=2.0))
    for other in (
        {"solver": "heun"},
        {"shift": 3.0},
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.0, 0.5)},
        {"guidance_channels": 1},
        {"guidance_schedule": "linear"},
        {"guidance_rescale": 0.7},
        {"num_inference_steps": 4},
    ):
        assert (pixels(pipe, [0], [0], **other) - plain).abs().max() > 1e-5, other
    fails(pipe, "did you mean 'num_inference_steps'", 0, num_inference_step=4)
    fails(pipe, "did you mean 'solver'", 0, sovler="heun")
    fails(pipe, "'hein' is not one of", 0, solver="hein")
    fails(pipe, "guidance_interval", 0, guidance_interval=(0.5, 0.2))
    fails(pipe, "steps: 2.5 is not a whole number", 0, num_inference_steps=2.5)
    fails(pipe, "schedule", 0, guidance_schedule="sine")
    for steps in (0, -1):
        fails(pipe, "steps", 0, num_inference_steps=steps)


def test_guidance_at_scale_one_asks_the_network_once(pipe):
    rows = []
    hook = pipe.network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    pipe([0, 1], guidance_scale=1.0)
    pipe([0, 1], guidance_scale=2.0)
    hook.remove()
    assert rows == [2, 2, 2, 4, 4, 4]


def test_callbacks_see_every_step_and_may_change_the_latents(pipe):
    seen = []

    def look(pipe, step, time, given):
        seen.append((step, time, given["latents"].shape))
        return {"latents": torch.zeros_like(given["latents"])} if step == 2 else None

    (codes,) = pipe([0, 1], callback_on_step_end=look, output_type="latent", return_dict=False)
    assert [step for step, _, _ in seen] == [0, 1, 2] and seen[-1][1] == 0
    assert {shape for _, _, shape in seen} == {(2, 16, 3)} and not codes.any()
    pipe(0, callback_on_step_end=lambda *arguments: {}, callback_on_step_end_tensor_inputs=[])
    fails(
        pipe,
        "a callback cannot have 'latent'; did you mean 'latents'",
        0,
        callback_on_step_end_tensor_inputs=["latent"],
    )


def test_callback_objects_of_diffusers(pipe):
    class Count(PipelineCallback):
        calls = 0
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            Count.calls += 1
            return callback_kwargs

    pipe(0, callback_on_step_end=Count())
    assert Count.calls == 3


def test_the_progress_bar_counts_network_evaluations(pipe, capsys):
    pipe.set_progress_bar_config(disable=False, desc="making")
    pipe(0, solver="heun", num_inference_steps=5)
    pipe.set_progress_bar_config(disable=True)
    assert "making" in (shown := capsys.readouterr().err) and "5/5" in shown
    pipe(0)
    assert not capsys.readouterr().err


def test_without_classes():
    pipe = make_pipeline(num_classes=0)
    assert len(pipe().images) == 1 and len(pipe(num_images=3).images) == 3
    assert len(pipe(generator=generators(0, 1)).images) == 2
    assert len(pipe(latents=torch.zeros(2, 16, 3)).images) == 2
    assert pipe.id2label == {}
    fails(pipe, "unconditional; leave class_labels out", 1)
    fails(pipe, "nothing to guide away from", guidance_scale=2.0)
    fails(pipe, "ask for at least 1", num_images=0)
