"""TokenFlow: which half of a code makes what, what is trained, SigLIP's sizes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from pipeline.code import Code
from pipeline.components import build
from pipeline.draws import StepDraws
from pipeline.losses.semantic_reconstruction import SemanticReconstruction
from pipeline.published.tokenflow import convert
from pipeline.teachers.base import Tap
from pipeline.teachers.vision_model import VisionModel
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.tokenflow import TokenFlow
from pipeline.vision.frozen_encoder import VisionTransformer

SHARED = {"kind": "shared_index", "semantic_dim": 4, "pixel_dim": 3, "vocab": 16}
SCALES = {"kind": "scale_by_scale", "sides": [1, 2, 4], "bottleneck": SHARED}
CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "image_size": 18, "num_hidden_layers": 3}
CLIP |= {"model_type": "clip_vision_model", "image_size": 16}
SIZES = {"semantic_outputs": 6, "semantic_width": 16, "semantic_depth": 2, "semantic_heads": 2, "width": 8}
SIZES |= {"multipliers": [1, 1, 1], "attention": [2], "blocks": 1, "groups": 4, "z_channels": 8, "bottleneck": SCALES}


def encoder(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    node = {"kind": "vision_transformer", "start": "random", "model": model, "image_patch": 4, "norm": "own"}
    return node | changes


def tokenflow(size: int = 16, **changes: Any) -> TokenFlow:
    torch.manual_seed(0)
    return TokenFlow(**{"image_size": size, "semantic_encoder": encoder(CLIP)} | SIZES | changes).eval()


def pictures(size: int = 16, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def test_the_semantic_half_makes_features_and_the_pixel_half_the_image():
    tokenizer = tokenflow()
    z = tokenizer.decoder_input(tokenizer.encode(pictures()))
    other = torch.randn_like(z)
    semantic, pixel = (torch.cat([other[..., :4], z[..., 4:]], -1), torch.cat([z[..., :4], other[..., 4:]], -1))
    images, features = tokenizer.render(z), tokenizer.rebuild_semantic(z)
    assert features.shape == (2, 6, 4, 4)
    assert torch.equal(tokenizer.render(semantic), images) and torch.equal(tokenizer.rebuild_semantic(pixel), features)
    assert not torch.allclose(tokenizer.render(pixel), images, atol=1e-3)
    assert not torch.allclose(tokenizer.rebuild_semantic(semantic), features, atol=1e-3)


def test_the_vision_model_is_trained_and_what_nothing_reads_is_not():
    tokenizer = tokenflow(18, semantic_encoder=encoder(SIGLIP, taps=[-2], rest="cut"), pixel_size=16).train()
    rebuilt = tokenizer(pictures(18), draws=StepDraws(0, 0, slice(0, 2), 2))
    (rebuilt.images.square().mean() + rebuilt.features["rebuilt_semantic"].square().mean()).backward()
    reached = {name for name, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    fixed = {id(parameter) for parameter in tokenizer.frozen_parameters()}
    still = {name for name, parameter in tokenizer.named_parameters() if id(parameter) in fixed}
    assert {name for name in still if "layers." in name} == {
        n for n, _ in tokenizer.named_parameters() if ".2." in n and "encoder.layers.2" in n
    }
    assert any("post_layernorm" in name for name in still) and any("model.head" in name for name in still)
    assert not reached & still
    silent = {name for name, _ in tokenizer.named_parameters()} - reached - still
    assert silent == {"neck.quantizer.codebook"}  # its own terms train the codebook


@torch.no_grad()
def test_the_rest_of_siglips_images_is_cut_off_and_pixels_have_a_size_of_their_own():
    tokenizer = tokenflow(18, semantic_encoder=encoder(SIGLIP, taps=[-2], rest="cut"), pixel_size=16)
    images = pictures(18)
    seen = tokenizer.encoder.maps(images)[0]
    states = tokenizer.encoder.model(pixel_values=images, output_hidden_states=True).hidden_states[-2]
    changed = images.clone()
    changed[:, :, 16:] = 0.0
    imagenet = encoder(SIGLIP, taps=[-2], rest="cut", mean=[0.5] * 3, std=[0.5] * 3)
    plain = tokenflow(18, semantic_encoder=imagenet, pixel_size=16)
    plain.load_state_dict(tokenizer.state_dict())
    torch.testing.assert_close(plain.encoder.maps(images)[0].flatten(2).mT, states)
    assert torch.equal(tokenizer.encoder.maps(changed)[0], seen)
    assert tokenizer.resized(images).shape[2:] == (16, 16) and tokenizer(images).images.shape[2:] == (18, 18)
    with pytest.raises(ValueError, match="image_patch"):
        tokenflow(18, semantic_encoder=encoder(SIGLIP), pixel_size=16)


@torch.no_grad()
def test_clips_last_norm_is_of_the_patches_too_and_a_teachers_projection():
    model = VisionTransformer(16, "random", CLIP, image_patch=4, norm="own")
    model.model.post_layernorm.weight.normal_()
    pixels = model.pixels(pictures())
    states = model.outputs(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(model(pictures())[0].flatten(2).mT, model.model.post_layernorm(states))
    teacher = VisionModel.without_weights(CLIP, "clip", size=16)
    assert Tap(teacher).width == 16
    with pytest.raises(ValueError, match="of a CLIP alone"):
        VisionModel.without_weights(SIGLIP, "siglip", readout="projected")


@torch.no_grad()
def test_the_semantic_encoder_begins_as_clip_and_the_teacher_projects_its_patches(tmp_path):
    """The hub has CLIP ViT-B/16 as a pickle alone."""
    config = transformers.CLIPConfig(vision_config=CLIP | {"projection_dim": 6}, projection_dim=6)
    whole = transformers.CLIPModel(config).eval()
    config.save_pretrained(tmp_path)
    torch.save(whole.state_dict(), tmp_path / "pytorch_model.bin")
    tokenizer = tokenflow(semantic_encoder=encoder({}, start=str(tmp_path)))
    begun, given = tokenizer.encoder.model.state_dict(), whole.vision_model.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in begun.items())
    teacher = VisionModel.load(tmp_path, readout="projected")
    pixels = teacher.pixels(pictures())
    patches = whole.vision_model.post_layernorm(whole.vision_model(pixel_values=pixels).last_hidden_state[:, 1:])
    assert Tap(teacher).width == 6
    torch.testing.assert_close(Tap(teacher)(pictures(), (4, 4)), whole.visual_projection(patches))


def test_the_loss_is_of_the_angle_to_the_teachers_features():
    class Teacher(torch.nn.Module):
        name, width = "teacher", 6

        def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
            return target.flatten(2).mT

    target = torch.randn(2, 6, 4, 4)
    loss = SemanticReconstruction(Teacher())
    of = lambda made: loss(pictures(), TokenizerOutput(None, Code(), {}, {"rebuilt_semantic": made}))  # noqa: E731
    assert of(3 * target)["semantic_reconstruction"].item() == pytest.approx(0, abs=1e-6)
    assert of(-target)["semantic_reconstruction"].item() == pytest.approx(2, abs=1e-6)
    mixed = torch.randn(2, 6, 4, 4)
    expected = 1 - F.cosine_similarity(mixed, target, dim=1).mean()
    torch.testing.assert_close(of(mixed)["semantic_reconstruction"], expected)
    arguments = build("tokenizers", {"kind": "tokenflow", **SIZES, "semantic_encoder": encoder(CLIP)}, image_size=16)
    loss.check(TokenFlow, arguments.config)
    Teacher.width = loss.tap.width = 7
    with pytest.raises(ValueError, match="7 channels"):
        loss.check(TokenFlow, arguments.config)


@torch.no_grad()
def test_a_checkpoint_on_siglip_is_imported_and_one_on_vitamin_refused():
    state = published_siglip()
    tokenizer = convert(state, sides=[1, 2, 4], encoder_heads=2, decoder_heads=2)["tokenizer"]
    assert tokenizer.config.pixel_size is None and tokenizer.config.semantic_encoder["taps"] == [-2]
    assert tokenizer.config.semantic_encoder["start"] == "saved"
    seen = tokenizer.encoder.model(pixel_values=pictures(), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tokenizer.encoder.normed_maps(pictures())[0].flatten(2).mT, seen)
    halves = [state[f"quantize.embedding_{half}.weight"] for half in ("vqkd", "vqgan")]
    assert torch.equal(tokenizer.neck.quantizer.codebook, torch.cat(halves, dim=1))
    with pytest.raises(ValueError, match="CLIP or SigLIP"):
        convert({name.replace("vision_model.", ""): value for name, value in state.items()})
    with pytest.raises(ValueError, match="state sides"):
        convert(state, encoder_heads=2, decoder_heads=2)
    with pytest.raises(ValueError, match="end in 3"):
        convert(state, sides=[1, 3], encoder_heads=2, decoder_heads=2)


def published_siglip() -> dict[str, Tensor]:
    """A state under the names of a checkpoint on SigLIP; all but its vision model is that of the reference case."""
    from safetensors.torch import load_file

    folder = Path(__file__).parents[1] / "golden" / "tokenflow_clip"
    state = {name: value.float() for name, value in load_file(folder / "state.safetensors").items()}
    model = SIGLIP | {"hidden_size": 32, "image_size": 16}
    vision = VisionTransformer(16, "random", model, image_patch=4).model.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("encoder_vqkd.")}
    return kept | {f"encoder_vqkd.vision_model.{name}": value for name, value in vision.items()}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bottleneck": {"kind": "vector_quantize", "dim": 7, "vocab": 16}}, "kind=shared_index"),
        ({"multipliers": [1, 1], "attention": []}, "8x8 positions of an image, the semantic encoder 4x4"),
        ({"semantic_heads": 3}, "semantic_width|heads"),
        ({"attention": [3]}, "level 3"),
        ({"decoder_multipliers": [1]}, "3 levels"),
        ({"semantic_encoder": encoder(CLIP, taps=[0, -1])}, "2 taps"),
        ({"bottleneck": SCALES | {"sides": [1, 2]}}, "ends in 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tokenflow(**changes)
