"""The tokenizer that merges the image's tokens on the way: other sizes, other places, and what is refused."""

import pytest
import torch
from torch import Tensor

from pipeline.components import Arguments, build
from pipeline.nn.merging_transformer import Merge, Split
from pipeline.tokenizers.merging_vit import MergingViT

BITS = {"kind": "bernoulli", "dim": 10, "bits": 5}
SIZES = {"tokens": 6, "width": 24, "depth": 3, "heads": 2, "patch_size": 4, "rotary_axes": [4, 4, 4]}
PLACES = {"merge_after": [1], "split_after": [2]}


def merging_vit(image_size=16, **changes) -> MergingViT:
    torch.manual_seed(0)
    return MergingViT(**({"image_size": image_size, "bottleneck": BITS} | SIZES | PLACES | changes)).eval()


def pictures(*sides: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *sides, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("sides", [(16, 24), (32, 8)])
def test_the_weights_of_one_size_make_codes_and_images_of_another(sides):
    trained, other = merging_vit(), merging_vit(list(sides))
    other.load_state_dict(trained.state_dict())
    code = other.encode(pictures(*sides))
    assert code.ids.shape == (2, 6, 5) and other.spec == trained.spec
    assert other.decode(code).shape == (2, 3, *sides)


@torch.no_grad()
@pytest.mark.parametrize(
    "places", [{"merge_after": [], "split_after": [1, 3]}, {"merge_after": [1, 2], "split_after": []}]
)
def test_maps_are_resampled_as_often_as_stated(places):
    tokenizer = merging_vit(32, **places)
    assert tokenizer.decode(tokenizer.encode(pictures(32, 32))).shape == (2, 3, 32, 32)
    assert len(tokenizer.encoder.resamplers) == len(places["merge_after"])


@torch.no_grad()
def test_a_prefix_of_the_tokens_is_decoded():
    tokenizer = merging_vit()
    z = tokenizer.neck.lookup(tokenizer.encode(pictures(16, 16)).ids)
    assert tokenizer.render(z[:, :2]).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="a code of 7 tokens is not this tokenizer's, which has 6"):
        tokenizer.render(torch.cat([z, z[:, :1]], dim=1))


@torch.no_grad()
def test_without_its_convolution_a_map_is_averaged_and_repeated():
    merge, split = Merge(2), Split(2)
    for module in (merge, split):
        torch.nn.init.zeros_(module.conv.weight), torch.nn.init.zeros_(module.conv.bias)
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    assert torch.equal(merge(maps)[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert torch.equal(merge(split(maps)), maps)


BAD = {
    "merge_after is .4.; give numbers of blocks from 1 to 3, ascending": {"merge_after": [4]},
    "split_after is .2, 1.; give numbers of blocks": {"split_after": [2, 1]},
    "rotary_axes is .4, 4, 6.; give three even numbers that add up to 12": {"rotary_axes": [4, 4, 6]},
    "a width of 24 is not divisible by 5 heads": {"heads": 5},
    "images of 20 pixels do not divide by 8, patch_size 4 halved 1 times": {"image_size": 20},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused_in_one_line(message):
    with pytest.raises(ValueError, match=message):
        merging_vit(**BAD[message])


def test_blocks_tell_the_positions_of_the_image():
    tokenizer, outputs = merging_vit(), {}
    for name in ("encoder.blocks.0", "encoder.blocks.2"):
        hook = lambda module, inputs, output, name=name: outputs.update({name: output})  # noqa: E731
        tokenizer.get_submodule(name).register_forward_hook(hook)
    tokenizer(pictures(16, 16))
    counts = [tokenizer.position_tokens(name, output).shape[1] for name, output in outputs.items()]
    assert counts == [16 + 6 - 6, 4]  # the first block sees 4x4 patches, the last one 2x2


def test_the_configuration_builds_it_again():
    tokenizer = merging_vit()
    again = build(
        "tokenizers",
        {
            "kind": "merging_vit",
            **{n: v for n, v in Arguments.from_config(tokenizer).items() if n not in ("image_size", "image_channels")},
        },
        image_size=16,
    )
    assert again.spec == tokenizer.spec and again.image_shape == (3, 16, 16)
