"""A network that reads prompts is asked by them, led away from others, and sampled image by image alike."""

import pytest
import torch
from support.captioned_pipeline import make_captioned_decoder, make_text_encoder, make_text_pipeline
from support.offloading import WAYS
from support.tiny_pipeline import fails, generators, make_network, make_pipeline, randomised

from pipeline import LatentPipeline
from pipeline.networks.bidirectional_transformer import BidirectionalTransformer
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.nn.conditions import text_arguments
from pipeline.objectives.masked_token import MaskedToken
from pipeline.objectives.next_token import NextToken
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

PROMPTS = ["a red fox", "an owl", "a house"]
FSQ = {"kind": "finite_scalar", "levels": [4, 3]}
FAMILIES = {
    "flow": None,
    "masked": (BidirectionalTransformer, MaskedToken),
    "next_token": (CausalTransformer, NextToken),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request) -> LatentPipeline:
    """16 pixels, 4x4 tokens; the network reads text alone."""
    if FAMILIES[request.param] is None:
        return make_text_pipeline()
    network, objective = FAMILIES[request.param]
    sizes = {"depth": 2, "width": 32, "heads": 2} | text_arguments(make_text_encoder().spec)
    made = louder(randomised(network([4, 4], 12, 0, **sizes), 2), 8 if request.param == "masked" else 4)
    tokenizer = randomised(ConvAutoencoder(16, FSQ, width=8, multipliers=[1, 2, 2], blocks=1, groups=4), 1)
    parts = {"tokenizer": tokenizer, "network": made, "objective": objective()}
    return make_pipeline(0, **parts, text_encoder=make_text_encoder(), sampling={"guidance": {"scale": 2.0}})


def louder(network: torch.nn.Module, times: int) -> torch.nn.Module:
    """With captions that count more, so that ids differ by them."""
    for name, parameter in network.named_parameters():
        parameter.data.mul_(30 if name.startswith("text.") else times)
    return network


def made(pipe: LatentPipeline, *prompts: str, seeds=(5, 6, 7), **settings) -> torch.Tensor:
    return pipe(list(prompts), generator=generators(*seeds), output_type="latent", **settings).images.float()


def test_each_image_depends_on_its_prompt_and_its_seed_alone(pipe):
    together = made(pipe, *PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(made(pipe, prompt, seeds=(5 + i,))[0], together[i], atol=1e-4, rtol=1e-4)
    other = made(pipe, PROMPTS[0], "a car", PROMPTS[2])
    torch.testing.assert_close(other[[0, 2]], together[[0, 2]], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other[1], together[1], atol=1e-3)
    embeds = pipe.encode_prompt(PROMPTS)
    asked = pipe(prompt_embeds=embeds, generator=generators(5, 6, 7), output_type="latent").images.float()
    assert torch.equal(asked, together)


def test_guidance_leads_away_from_the_negative_prompt(pipe):
    together = made(pipe, *PROMPTS)
    away = made(pipe, *PROMPTS, negative_prompt="a car")
    assert not torch.allclose(away, together, atol=1e-3)
    each = made(pipe, *PROMPTS, negative_prompt=["a car"] * 3)
    torch.testing.assert_close(each, away, atol=1e-4, rtol=1e-4)
    nowhere = made(pipe, *PROMPTS, negative_prompt=PROMPTS)
    unguided = made(pipe, *PROMPTS, guidance_scale=1.0)
    torch.testing.assert_close(nowhere, unguided, atol=1e-3, rtol=1e-3)
    fails(pipe, "negative_prompt has no effect where guidance_scale is 1", "a", negative_prompt="b", guidance_scale=1.0)
    fails(pipe, "2 of negative_prompt for 3 images", PROMPTS, negative_prompt=["a", "b"])
    assert pipe.do_classifier_free_guidance is False or pipe.guidance_scale != 1


def test_pictures_are_edited_by_prompt(pipe):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    half = torch.zeros(16, 16)
    half[:8] = 1
    edited = pipe(PROMPTS, image=images, mask=half, generator=generators(1, 2, 3), output_type="pt").images
    shown = (images / 2 + 0.5).clamp(0, 1)
    assert torch.equal(edited[:, :, 8:], shown[:, :, 8:]) and not torch.allclose(edited[:, :, :8], shown[:, :, :8])
    other = pipe(["a car"] * 3, image=images, mask=half, generator=generators(1, 2, 3), output_type="pt").images
    assert not torch.allclose(other, edited, atol=1e-3)


def test_classes_and_text_are_asked_for_together():
    pipe = make_text_pipeline(4)
    one = pipe(["zero", 3], prompt=PROMPTS[:2], generator=generators(1, 2), output_type="pt").images
    again = pipe([3], prompt=PROMPTS[1], generator=generators(2), output_type="pt").images
    assert torch.allclose(one[1:], again, atol=1e-5)
    other = pipe([2], prompt=PROMPTS[1], generator=generators(2), output_type="pt").images
    assert not torch.allclose(other, again, atol=1e-4)
    fails(pipe, "needs class_labels", prompt="a fox")
    fails(pipe, "asked in words", 0)


def test_a_weak_network_takes_the_place_of_the_negative_prompt():
    pipe = make_text_pipeline()
    pipe.weak = make_network(0, depth=1, text_reading="cross_attention", **text_arguments(make_text_encoder().spec))
    assert len(pipe("a fox", guidance_scale=2.0).images) == 1
    fails(pipe, "pipe.weak is led away from", "a fox", negative_prompt="an owl", guidance_scale=2.0)


def test_prompts_mean_the_same_to_a_pipeline_that_was_saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = LatentPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(made(loaded, *PROMPTS), made(pipe, *PROMPTS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_prompts_mean_the_same_to_parts_that_are_offloaded(way, tmp_path):
    pipe = make_captioned_decoder()
    expected = sampled(pipe)
    for name in ("text_encoder", "network", "tokenizer"):
        WAYS[way](getattr(pipe, name), tmp_path / name)
    for _ in range(2):
        torch.testing.assert_close(sampled(pipe), expected, atol=1e-5, rtol=1e-5)


def sampled(pipe: LatentPipeline) -> torch.Tensor:
    return pipe([0, 1, 2], prompt=PROMPTS, generator=generators(5, 6, 7), output_type="pt").images


def test_an_interrupted_call_with_prompts_leaves_nothing_behind(pipe):
    """The prompts and the negative prompt of the call that was stopped are not those of the next."""

    def stop(pipeline, step, timestep, kept):
        pipeline._interrupt = step == 0
        return kept

    expected = made(pipe, *PROMPTS)
    begun = made(pipe, "a car", "a car", "a car", negative_prompt="an owl", callback_on_step_end=stop)
    assert pipe.interrupt and begun.shape == expected.shape and not torch.allclose(begun, expected, atol=1e-3)
    assert torch.equal(made(pipe, *PROMPTS), expected) and not pipe.interrupt
