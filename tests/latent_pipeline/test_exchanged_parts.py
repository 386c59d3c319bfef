"""What may take the place of a LatentPipeline's parts: schedulers, objectives, attention kernels."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from support.tiny_pipeline import make_network, make_pipeline, make_tokenizer, pixels

from pipeline import LatentPipeline
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.objectives.gaussian_diffusion import GaussianDiffusion


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


PARTS = {"tokenizer", "network", "objective", "scheduler", "weak", "text_encoder"}


def test_components_move_into_another_pipeline(pipe):
    again = LatentPipeline(**pipe.components, id2label=pipe.id2label)
    assert again.network is pipe.network and set(pipe.components) == PARTS
    assert set(pipe.model_cpu_offload_seq.split("->")) == {"text_encoder", "network", "tokenizer"}


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        empty = type(make_network())([4, 4], 3, 4, depth=1, width=32, heads=2)
    with pytest.raises(ValueError, match="has no value for"):
        LatentPipeline(make_tokenizer(), empty, FlowMatching())
