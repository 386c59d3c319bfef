"""A pipeline whose tokenizer reads captions decodes every image by its own, and is saved and moved as a whole."""

from pathlib import Path

import pytest
import torch
from support.captioned_pipeline import make_captioned_decoder, make_text_encoder
from support.tiny_pipeline import fails, generators, make_network, make_pipeline, pixels
from torch import Tensor

from pipeline import LatentPipeline
from pipeline.code import Code
from pipeline.components import build
from pipeline.sampling.interpolation import interpolate
from pipeline.sampling.text_encoder import load_text_encoder

PROMPTS = ["a red fox", "an owl", ""]


@pytest.fixture(scope="module", params=["tatitok", "textok"])
def pipe(request) -> LatentPipeline:
    return make_captioned_decoder(request.param)


def made(pipe: LatentPipeline, **settings) -> Tensor:
    return pixels(pipe, [0, 1, 3], [5, 6, 7], prompt=PROMPTS, **settings)


def test_an_image_depends_on_its_own_prompt_alone(pipe):
    together = made(pipe)
    for i, prompt in enumerate(PROMPTS):
        alone = pixels(pipe, [[0, 1, 3][i]], [5 + i], prompt=prompt)
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    other = pixels(pipe, [0, 1, 3], [5, 6, 7], prompt=[PROMPTS[0], "a car", PROMPTS[2]])
    assert torch.allclose(other[[0, 2]], together[[0, 2]], atol=1e-5)
    assert (other[1] - together[1]).abs().max() > 1e-4
    pipe.enable_slicing()
    sliced = made(pipe)
    pipe.disable_slicing()
    assert torch.allclose(sliced, together, atol=1e-5)


def test_prompts_and_labels_are_repeated_together(pipe):
    twice = pixels(pipe, [0, 1], [1, 2, 3, 4], prompt=["a fox", "an owl"], num_images_per_prompt=2)
    expected = pixels(pipe, [0, 0, 1, 1], [1, 2, 3, 4], prompt=["a fox", "a fox", "an owl", "an owl"])
    assert torch.allclose(twice, expected, atol=1e-5)
    one = pixels(pipe, 2, [1, 2], prompt=["a fox", "an owl"])
    assert torch.allclose(one, pixels(pipe, [2, 2], [1, 2], prompt=["a fox", "an owl"]), atol=1e-5)
    assert len(pixels(pipe, 2, [1, 2, 3], prompt="a fox", num_images=3)) == 3
    fails(pipe, "2 of prompt for 3 images", 0, prompt=["a", "b"], num_images=3)
    fails(pipe, "2 class_labels for num_images=3", [0, 1], prompt=PROMPTS)
    fails(pipe, "both given", 0, prompt="a", num_images_per_prompt=2, num_images_per_label=2)
    fails(pipe, "asked in words", 0)
    fails(pipe, "the network reads no text", 0, prompt="a", negative_prompt="b")


def test_features_take_the_place_of_prompts(pipe):
    embeds = pipe.encode_prompt(PROMPTS)
    assert torch.equal(made(pipe), pixels(pipe, [0, 1, 3], [5, 6, 7], prompt_embeds=embeds))
    tensors = {"prompt_embeds": embeds.text, "prompt_attention_mask": embeds.text_mask}
    tensors |= {"pooled_prompt_embeds": embeds.pooled}
    assert torch.equal(made(pipe), pixels(pipe, [0, 1, 3], [5, 6, 7], **tensors))
    assert pipe.encode_prompt("a fox", num_images_per_prompt=3).text.shape[0] == 3
    without = LatentPipeline.from_pipe(pipe, text_encoder=None)
    without.set_progress_bar_config(disable=True)
    assert torch.equal(made(pipe), pixels(without, [0, 1, 3], [5, 6, 7], prompt_embeds=embeds))
    fails(without, "no text encoder to read prompt with; give prompt_embeds", 0, prompt="a fox")


def test_pictures_are_edited_and_interpolated_by_prompt(pipe):
    images = made(pipe) * 2 - 1
    edited = made(pipe, image=images, strength=0.4)
    condition = pipe.encode_prompt(PROMPTS)
    rebuilt = (pipe.decode(pipe.encode(images, condition), condition) / 2 + 0.5).clamp(0, 1)
    assert edited.shape == images.shape
    kept = made(pipe, image=images, strength=1e-3)
    assert (kept - rebuilt).abs().mean() < (made(pipe) - rebuilt).abs().mean() + 1e-2
    way = pipe.interpolate(images[0], images[1], 3, "pt", prompt="a red fox").images
    one = condition[[0, 0]]
    ends = (pipe.decode(pipe.encode(images[:2], one), one) / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(way[[0, 2]], ends, atol=1e-5)
    with pytest.raises(ValueError, match="asked in words"):
        pipe.interpolate(images[0], images[1])
    rows = interpolate(pipe, [1], [(3, 4)], ["a red fox"])
    assert torch.allclose(rows[0, 0], pixels(pipe, [1], [3], prompt="a red fox")[0], atol=1e-4)


def test_a_folder_keeps_the_encoder_or_is_given_one(pipe, tmp_path: Path):
    pipe.save_pretrained(tmp_path / "whole")
    again = LatentPipeline.from_pretrained(tmp_path / "whole")
    again.set_progress_bar_config(disable=True)
    assert torch.allclose(made(again), made(pipe), atol=1e-6)
    parts = LatentPipeline.from_pretrained(tmp_path / "whole", text_encoder=None)
    parts.set_progress_bar_config(disable=True)
    fails(parts, "no text encoder", 0, prompt="a fox")
    with pytest.raises(ValueError, match="names none; state text_encoder=FOLDER"):
        load_text_encoder(parts)
    parts.text_encoder = load_text_encoder(parts, tmp_path / "whole")
    assert torch.allclose(made(parts), made(pipe), atol=1e-6)
    parts.save_pretrained(tmp_path / "completed")
    assert LatentPipeline.from_pretrained(tmp_path / "completed").text_encoder is not None
    with pytest.raises(ValueError, match="holds no text encoder"):
        load_text_encoder(parts, tmp_path)
    shared = LatentPipeline.from_pipe(pipe)
    shared.set_progress_bar_config(disable=True)
    assert shared.text_encoder is pipe.text_encoder
    assert torch.allclose(made(shared), made(pipe), atol=1e-6)


def test_an_encoder_that_does_not_fit_is_refused(pipe):
    other = build("text_encoders", {"kind": "byte_transformer", "tokens": 9, "width": 8, "depth": 1, "heads": 2})
    with pytest.raises(ValueError, match="reads captions as .* they must agree") as error:
        pipe.text_encoder = other
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="neither network nor tokenizer reads text"):
        make_pipeline(text_encoder=make_text_encoder())


def test_types_are_moved(pipe):
    low = LatentPipeline.from_pipe(make_captioned_decoder("textok"), dtype=torch.bfloat16)
    low.set_progress_bar_config(disable=True)
    assert low.text_encoder.dtype is torch.bfloat16
    assert made(low).isfinite().all()
    codes = low([0], prompt="a", generator=generators(1), output_type="latent").images
    assert Code(z=codes).z.shape == (1, 4, 3)


def test_a_network_of_classes_alone_is_not_shown_the_text():
    pipe = make_captioned_decoder(network=make_network(0, grid=[4]), id2label={}, sampling={"steps": 2})
    images = pipe("a fox", generator=generators(1), output_type="pt").images
    assert torch.equal(images, pipe(prompt="a fox", generator=generators(1), output_type="pt").images)
    assert len(pipe("a fox", num_images_per_prompt=2).images) == 2 and len(pipe("a fox", num_images=3).images) == 3
