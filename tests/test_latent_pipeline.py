"""LatentPipeline behaves as people who know diffusers expect, and says in one line what is wrong."""

import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import PipelineCallback
from PIL import Image
from safetensors.torch import load_file, save_file
from support.fresh_process import run_fresh
from support.tiny_pipeline import generators, make_network, make_pipeline, make_tokenizer
from torch import Generator

import pipeline.saved_folders
from pipeline import LatentPipeline
from pipeline.code import Code, Condition
from pipeline.draws import ImageDraws
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.objectives.gaussian_diffusion import GaussianDiffusion
from pipeline.samplers.guidance import Guidance

ROOT = Path(__file__).parents[1]
RELOAD = """
import sys, torch
torch.set_num_threads(1)
from pipeline import LatentPipeline
pipe = LatentPipeline.from_pretrained(sys.argv[1])
generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
torch.save(pipe([1, 2], generator=generators, output_type="pt").images, sys.argv[2])
"""


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


def pixels(pipe, labels, seeds, **settings):
    return pipe(labels, generator=generators(*seeds), output_type="pt", **settings).images


def fails(pipe, match, *arguments, **settings):
    with pytest.raises(ValueError, match=match) as error:
        pipe(*arguments, **settings)
    assert "\n" not in str(error.value)


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
        type(pipe.tokenizer), "decode", lambda self, code: (sizes.append(len(code)), decode(self, code))[1]
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


def test_a_fresh_process_in_another_folder_makes_the_same_images(pipe, saved, tmp_path):
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    run_fresh(RELOAD, saved, "images.pt", cwd=tmp_path, env=here)
    loaded = torch.load(tmp_path / "images.pt", weights_only=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = pixels(pipe, [1, 2], [5, 6])
    torch.set_num_threads(threads)
    assert torch.equal(loaded, expected)


def test_the_index_says_all_and_comes_back(saved, pipe):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "LatentPipeline"
    assert index["network"] == ["pipeline.networks.diffusion_transformer", "DiffusionTransformer"]
    assert index["tokenizer"] == ["pipeline.tokenizers.conv_autoencoder", "ConvAutoencoder"]
    assert index["id2label"]["1"] == "great white shark" and index["sampling"]["steps"] == 3
    loaded = LatentPipeline.from_pretrained(saved)
    assert loaded.id2label == pipe.id2label and loaded.defaults == pipe.defaults
    for name, value in pipe.network.config.items():
        assert name.startswith("_") or loaded.network.config[name] == value


def test_diffusers_own_class_says_what_it_lacks(saved):
    with pytest.raises(AttributeError, match="LatentPipeline"):
        DiffusionPipeline.from_pretrained(saved)


def test_files_are_readable_by_others(pipe, tmp_path):
    before = os.umask(0o022)
    try:
        pipe.save_pretrained(tmp_path / "open")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "open").rglob("*") if path.is_file()]
    assert len(files) == 7 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_only_modules_of_ours_are_imported(saved, tmp_path):
    folder = tmp_path / "odd"
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    pipe = LatentPipeline.from_pretrained(saved)
    pipe.save_pretrained(folder)
    (folder / "checksums.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    sys.path.insert(0, str(tmp_path))
    try:
        for module, message in (("evil", "has not been imported"), ("pipeline.networks.gone", "does not have; update")):
            index["network"][0] = module
            (folder / "model_index.json").write_text(json.dumps(index))
            with pytest.raises(ValueError, match=message):
                LatentPipeline.from_pretrained(folder)
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil" not in sys.modules


@pytest.mark.parametrize("part, lost", [("network", "head.linear.weight"), ("tokenizer", "std")])
def test_missing_weights_are_refused(saved, tmp_path, part, lost):
    LatentPipeline.from_pretrained(saved).save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights[lost]
    (tmp_path / "cut" / "checksums.json").unlink()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="incomplete|lacks") as error:
        LatentPipeline.from_pretrained(tmp_path / "cut")
    assert lost in str(error.value) and "\n" not in str(error.value)


def test_folders_that_are_no_pipeline(tmp_path):
    with pytest.raises(ValueError, match="holds no model_index.json"):
        LatentPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        LatentPipeline.from_pretrained(tmp_path / "a" / "b")


def test_a_hub_id_is_downloaded_whole_first(saved, pipe, monkeypatch):
    asked = {}

    def download(source, **options):
        asked.update(options, source=source)
        return str(saved)

    monkeypatch.setattr(pipeline.saved_folders, "snapshot_download", download)
    loaded = LatentPipeline.from_pretrained("someone/digits", revision="v1")
    assert asked["source"] == "someone/digits" and asked["revision"] == "v1" and "*.bin" in asked["ignore_patterns"]
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(pixels(loaded, [1], [0]), pixels(pipe, [1], [0]))


def test_variants_and_given_components(saved, pipe, tmp_path):
    other = make_pipeline(network=make_network(4, depth=1))
    raw = make_network(4)
    with torch.no_grad():
        raw.head.linear.weight.mul_(1.5)
    pipe.save_pretrained(tmp_path / "both")
    raw.save_pretrained(tmp_path / "both" / "network", variant="raw")
    loaded = LatentPipeline.from_pretrained(tmp_path / "both", variant="raw")
    assert torch.equal(loaded.network.head.linear.weight, raw.head.linear.weight)
    assert torch.equal(
        LatentPipeline.from_pretrained(tmp_path / "both").network.head.linear.weight * 1.5, raw.head.linear.weight
    )
    assert LatentPipeline.from_pretrained(saved, network=other.network).network is other.network


@pytest.mark.parametrize("how", ["moved", "loaded"])
def test_bfloat16_stays_near(saved, pipe, how):
    narrow = LatentPipeline.from_pretrained(saved, **({"dtype": torch.bfloat16} if how == "loaded" else {}))
    narrow = narrow.to(torch.bfloat16)
    narrow.set_progress_bar_config(disable=True)
    seen = {}
    narrow.network.register_forward_pre_hook(lambda module, inputs: seen.update(z=inputs[0].dtype, t=inputs[1].dtype))
    made = pixels(narrow, [0, 1], [0, 1])
    assert seen == {"z": torch.bfloat16, "t": torch.float32} and narrow.dtype == torch.bfloat16
    assert made.dtype == torch.float32
    assert (made - pixels(pipe, [0, 1], [0, 1])).abs().max() < 0.05


def test_schedulers_take_the_place_of_the_sampler(saved, pipe):
    swapped = LatentPipeline.from_pretrained(saved)
    swapped.set_progress_bar_config(disable=True)
    swapped.scheduler = FlowMatchEulerDiscreteScheduler()
    assert torch.allclose(pixels(swapped, [0], [0]), pixels(pipe, [0], [0]), atol=1e-6)
    swapped.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    assert torch.allclose(
        pixels(swapped, [0], [0], num_inference_steps=8),
        pixels(pipe, [0], [0], solver="unipc", num_inference_steps=8),
        atol=5e-3,  # its own noise levels are not quite even
    )
    for wrong in (DDIMScheduler(), EulerDiscreteScheduler()):
        with pytest.raises(ValueError, match="does not fit") as error:
            swapped.scheduler = wrong
        assert "\n" not in str(error.value)
        assert type(swapped.scheduler) is UniPCMultistepScheduler
    with pytest.raises(ValueError, match="does not fit"):
        make_pipeline(scheduler=DDIMScheduler())
    swapped.scheduler = None
    assert torch.equal(pixels(swapped, [0], [0]), pixels(pipe, [0], [0]))


def test_a_swapped_scheduler_is_saved(tmp_path):
    pipe = make_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    pipe.save_pretrained(tmp_path)
    loaded = LatentPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler and loaded.scheduler.config.shift == 2.0
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(pixels(loaded, [0], [0]), pixels(pipe, [0], [0]))


def test_the_other_objective(tmp_path):
    pipe = make_pipeline(network=make_network(4, outputs=2), objective=GaussianDiffusion(), sampling={"steps": 4})
    pipe.save_pretrained(tmp_path)
    loaded = LatentPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    together = pixels(loaded, [0, 1], [0, 1], solver="ddpm")
    assert torch.equal(together, pixels(pipe, [0, 1], [0, 1]))
    assert torch.allclose(together[1:], pixels(pipe, [1], [1]), atol=1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        loaded.scheduler = FlowMatchEulerDiscreteScheduler()
    trained = {name: loaded.objective.config[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    loaded.scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **trained)
    assert pixels(loaded, [0], [0]).isfinite().all()


def test_attention_backends_and_checkpointing_reach_the_network(pipe):
    plain = pixels(pipe, [0], [0])
    for backend in ("native", "_native_math"):
        pipe.set_attention_backend(backend)
        assert torch.allclose(pixels(pipe, [0], [0]), plain, atol=1e-5)
    pipe.network.reset_attention_backend()
    pipe.network.enable_gradient_checkpointing()
    assert torch.equal(pixels(pipe, [0], [0]), plain)
    pipe.network.disable_gradient_checkpointing()


PARTS = {"tokenizer", "network", "objective", "scheduler", "weak"}


def test_components_move_into_another_pipeline(pipe):
    again = LatentPipeline(**pipe.components, id2label=pipe.id2label)
    assert again.network is pipe.network and set(pipe.components) == PARTS
    assert set(pipe.model_cpu_offload_seq.split("->")) == {"network", "tokenizer"}


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        empty = type(make_network())([4, 4], 3, 4, depth=1, width=32, heads=2)
    with pytest.raises(ValueError, match="has no value for"):
        LatentPipeline(make_tokenizer(), empty, FlowMatching())
