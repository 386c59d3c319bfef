"""What diffusers' own tests of pipelines ask, of LatentPipeline: sharing, callbacks, types, variants, uploads."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines import pipeline_utils
from diffusers.utils import hub_utils
from support.tiny_pipeline import NAMES, generators, make_network, make_pipeline
from torch import Generator, Tensor

from pipeline import LatentPipeline
from pipeline.components import build
from pipeline.samplers.callbacks import unfinished_code
from pipeline.saved_folders import finish_saving

VQ = {
    "bottleneck": {"kind": "vector_quantize", "dim": 4, "vocab": 8},
    "width": 8,
    "multipliers": [1, 2, 2],
    "blocks": 1,
    "groups": 4,
}


@pytest.fixture(scope="module")
def pipe() -> LatentPipeline:
    return make_pipeline()


def codes(pipe: LatentPipeline, labels: object, *seeds: int, **arguments: object) -> Tensor:
    return pipe(labels, generator=generators(*seeds), output_type="latent", **arguments).images


def test_from_pipe_shares_components_and_keeps_names_and_defaults(pipe):
    again = LatentPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert again.network is pipe.network and again.tokenizer is pipe.tokenizer and again.objective is pipe.objective
    assert again.id2label == NAMES and again.defaults == pipe.defaults
    assert torch.equal(codes(again, "zero", 1), codes(pipe, "zero", 1))
    other = make_network(depth=1)
    changed = LatentPipeline.from_pipe(pipe, network=other, sampling={"steps": 2})
    assert changed.network is other and changed.steps == 2 and pipe.steps == 3


def test_from_pipe_casts_only_when_asked(pipe):
    narrow = LatentPipeline.from_pipe(make_pipeline().to(torch.bfloat16))
    assert narrow.dtype == torch.bfloat16
    assert LatentPipeline.from_pipe(narrow, torch_dtype=torch.float32).dtype == torch.float32


def test_from_pipe_says_what_is_missing(pipe):
    with pytest.raises(ValueError, match="a DiTPipeline has no tokenizer; give tokenizer=..."):
        LatentPipeline.from_pipe(type("DiTPipeline", (), {"config": {}, "components": {}})())
    with pytest.raises(ValueError, match="netwerk: .* did you mean 'network'"):
        LatentPipeline.from_pipe(pipe, netwerk=None)


def test_callback_inputs_are_those_that_the_pipeline_names(pipe):
    def look(pipe: LatentPipeline, step: int, time: float, given: dict[str, Tensor]) -> dict[str, Tensor]:
        assert set(given) <= set(pipe._callback_tensor_inputs)
        if step == pipe.num_timesteps - 1:
            given["latents"] = torch.zeros_like(given["latents"])
        return given

    asked = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": ["latents"]}
    for settings in ({}, {"solver": "heun"}, {"solver": "heun", "num_inference_steps": 6}, {"solver": "unipc"}):
        assert not codes(pipe, 0, 1, **asked, **settings).any(), settings


def test_a_callback_changes_the_guidance_scale(pipe):
    def raise_it(pipe: LatentPipeline, step: int, time: float, given: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale += 1.0
        return given

    after = codes(pipe, 0, 1, guidance_scale=1.5, callback_on_step_end=raise_it)
    assert pipe.guidance_scale == 1.5 + pipe.num_timesteps
    assert not torch.allclose(after, codes(pipe, 0, 1, guidance_scale=1.5)) and pipe.guidance_scale == 1.5

    def switch_it_off(pipe: LatentPipeline, step: int, time: float, given: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 1.0
        assert not pipe.do_classifier_free_guidance
        return given

    asked = []
    hook = pipe.network.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    codes(pipe, 0, 1, guidance_scale=2.0, callback_on_step_end=switch_it_off)
    hook.remove()
    assert asked == [2, 1, 1]
    with pytest.raises(ValueError, match="nothing to guide away from"):
        make_pipeline(num_classes=0)(callback_on_step_end=raise_it)


class Stop(PipelineCallback):
    """Reads what diffusers' callbacks read, and ends the sampling after its first step."""

    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.seen = (pipeline.num_timesteps, pipeline.guidance_scale, pipeline.do_classifier_free_guidance)
        assert not pipeline.interrupt
        self.state = callback_kwargs["latents"]
        pipeline._interrupt = step_index == 0
        return callback_kwargs


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupted_call_returns_the_state_so_far(pipe, wrapped):
    stop, calls = Stop(), []
    hook = pipe.network.register_forward_hook(lambda *arguments: calls.append(1))
    made = codes(pipe, 0, 1, callback_on_step_end=MultiPipelineCallbacks([stop]) if wrapped else stop)
    hook.remove()
    assert stop.seen == (3, 2.0, True) and len(calls) == 1 and torch.equal(made, stop.state) and pipe.interrupt
    assert codes(pipe, 0, 1).shape == made.shape and not pipe.interrupt
    assert len(pipe([0, 1], callback_on_step_end=stop).images) == 2


def test_tokens_that_an_interruption_leaves_open_have_id_zero():
    spec = build("tokenizers", {**VQ, "kind": "conv_autoencoder"}, image_size=16).spec
    state = torch.tensor([[3, spec.vocab, 1]])
    assert unfinished_code(state, spec).ids.tolist() == [[3, 0, 1]]


def test_labels_are_repeated_in_place(pipe):
    twice = codes(pipe, [3, 1], 1, 2, 3, 4, num_images_per_label=2)
    assert torch.equal(twice, codes(pipe, [3, 3, 1, 1], 1, 2, 3, 4))
    noise = pipe.prepare_latents(4, generators(1, 2, 3, 4))
    assert torch.equal(twice, codes(pipe, [3, 1], 1, 2, 3, 4, num_images_per_label=2, latents=noise))
    assert pipe.check_inputs("zero", num_images=2, num_images_per_label=2) == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="2 generators for 4 images"):
        codes(pipe, [3, 1], 1, 2, num_images_per_label=2)
    with pytest.raises(ValueError, match="num_images_per_label is 0; ask for at least 1"):
        pipe(0, num_images_per_label=0)
    with pytest.raises(ValueError, match="set num_images in place of num_images_per_label"):
        make_pipeline(num_classes=0)(num_images_per_label=2)


def test_latents_are_prepared_as_a_call_draws_them(pipe):
    assert torch.equal(
        codes(pipe, 0, 1), pipe(0, latents=pipe.prepare_latents(1, generators(1)), output_type="latent").images
    )


def test_settings_of_the_sampler_beside_a_scheduler_are_refused(pipe):
    swapped = LatentPipeline.from_pipe(pipe, scheduler=FlowMatchEulerDiscreteScheduler())
    for settings in ({"solver": "heun"}, {"shift": 2.0}):
        with pytest.raises(ValueError, match="has no effect beside pipe.scheduler; leave it out") as error:
            swapped(0, **settings)
        assert "\n" not in str(error.value)
    assert swapped(0, output_type="latent", generator=Generator().manual_seed(0)).images.isfinite().all()


def test_types_are_given_by_component(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for name in ("dtype", "torch_dtype"):
        for given in ({"network": torch.bfloat16, "default": torch.float32}, {"network": torch.bfloat16}):
            loaded = LatentPipeline.from_pretrained(tmp_path, **{name: given})
            assert loaded.network.dtype == torch.bfloat16 and loaded.tokenizer.dtype == torch.float32
            assert loaded(0).images
    half = LatentPipeline.from_pretrained(tmp_path, dtype={"default": torch.bfloat16})
    assert half.network.dtype == half.tokenizer.dtype == torch.bfloat16


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_variants_survive_a_second_save(pipe, tmp_path, shards):
    folders = [tmp_path / "first", tmp_path / "second"]
    made = pipe
    for folder in folders:
        made.save_pretrained(folder, variant="fp16", **shards)
        weights = [path.name for path in folder.rglob("*.safetensors")]
        assert weights and all(".fp16" in name for name in weights)
        made = LatentPipeline.from_pretrained(folder, variant="fp16")
    made.set_progress_bar_config(disable=True)
    assert torch.equal(codes(made, 0, 1), codes(pipe, 0, 1))
    with pytest.raises((OSError, ValueError)):
        LatentPipeline.from_pretrained(folders[0])


@pytest.fixture
def hub(monkeypatch) -> list[dict]:
    """What is uploaded, in place of the hub: the files' names and the index of every upload."""
    uploads = []

    class Card:
        data = type("Data", (), {"tags": None, "library_name": None})()

        def save(self, path: str) -> None:
            Path(path).write_text("card")

    def upload(repo_id: str, folder_path: str, **options: object) -> str:
        folder = Path(folder_path)
        modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
        index = json.loads((folder / "model_index.json").read_text())
        uploads.append({"repo": repo_id, "index": index, "modes": modes, "options": options})
        return "url"

    for module in (pipeline_utils, hub_utils):
        monkeypatch.setattr(module, "create_repo", lambda repo, **options: type("Repo", (), {"repo_id": repo}))
        monkeypatch.setattr(module, "load_or_create_model_card", lambda *names, **options: Card())
        monkeypatch.setattr(module, "populate_model_card", lambda card, **options: card)
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    return uploads


@pytest.mark.parametrize("how", ["save_pretrained", "push_to_hub"])
def test_the_finished_folder_is_uploaded(pipe, hub, tmp_path, monkeypatch, how):
    def finish(pipe: LatentPipeline, folder: Path, before: dict) -> None:
        finish_saving(pipe, folder, before)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"finished": True}))

    monkeypatch.setattr("pipeline.saved_pipeline.finish_saving", finish)
    if how == "push_to_hub":
        pipe.push_to_hub("someone/digits", commit_message="one")
    else:
        pipe.save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/digits", commit_message="one")
    (upload,) = hub
    assert upload["repo"] == "someone/digits" and upload["index"]["finished"]
    assert upload["options"]["commit_message"] == "one" and upload["modes"] == {0o644}


def test_vae_names_reach_the_tokenizer(pipe):
    images = [codes(pipe, [0, 1], 1, 2), pipe([0, 1], generator=generators(1, 2), output_type="pt").images]
    pipe.enable_vae_slicing()
    sliced = pipe([0, 1], generator=generators(1, 2), output_type="pt").images
    pipe.disable_vae_slicing()
    torch.testing.assert_close(sliced, images[1], atol=1e-5, rtol=1e-5)
    pipe.enable_vae_tiling()
    assert pipe.tokenizer.use_tiling
    pipe.disable_vae_tiling()
    assert not pipe.tokenizer.use_tiling


@torch.no_grad()
def test_tokenizers_encode_and_decode_by_slices_and_say_when_there_are_no_tiles():
    node = {"kind": "vit_autoencoder", "bottleneck": {"kind": "gaussian", "dim": 3}, "patch_size": 4}
    model = build("tokenizers", {**node, "width": 32, "depth": 1, "heads": 2}, image_size=16).eval()
    images, sizes = torch.randn(3, 3, 16, 16), []
    code = model.encode(images)
    made = model.decode(code)
    for layer in (model.encoder, model.decoder):
        layer.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    model.enable_slicing()
    torch.testing.assert_close(model.encode(images).z, code.z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(code), made, atol=1e-5, rtol=1e-5)
    assert sizes == [1] * 6
    model.disable_slicing()
    model.encode(images)
    assert sizes[6:] == [3]
    with pytest.raises(ValueError, match="VitAutoencoder is not convolutional.*enable_slicing"):
        model.enable_tiling()


@torch.no_grad()
@pytest.mark.parametrize(
    "node",
    [
        {"kind": "maskgit_vqgan", "bottleneck": {"kind": "vector_quantize", "dim": 4, "vocab": 8}},
        {"kind": "two_band", "bottleneck": {"kind": "gaussian", "dim": 4}, "groups": 4},
    ],
    ids=lambda node: node["kind"],
)
def test_convolutional_autoencoders_have_tiles(node):
    model = build("tokenizers", {**node, "width": 8, "multipliers": [1, 1], "blocks": 1}, image_size=16).eval()
    images = torch.randn(1, 3, 32, 48)
    whole = model(images).images
    model.enable_tiling()
    tiled = model(images).images
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
