"""Tokenizers that read captions: which layers they read, what they refuse, and that they put a caption to use."""

import pytest
import torch
from torch import Tensor

from pipeline.code import Condition
from pipeline.commands.card import captions_of, find_target
from pipeline.commands.reconstruct import load_tokenizer_of
from pipeline.components import build
from pipeline.draws import StepDraws
from pipeline.nn.caption_tokens import caption_features
from pipeline.recipes.data import Data

SIZES = {
    "bottleneck": {"kind": "gaussian", "dim": 2},
    "tokens": 1,
    "width": 32,
    "depth": 1,
    "heads": 2,
    "patch_size": 4,
}
TEXT = {"text_tokens": 3, "text_dim": 4, "text_layers": 2}


def captioned(kind: str, **changes):
    return build("tokenizers", {"kind": kind} | SIZES | changes, image_size=8, **TEXT)


def condition(batch: int = 2) -> Condition:
    return Condition(text=torch.randn(batch, 3, 8))


@pytest.mark.parametrize("kind", ["tatitok", "textok"])
def test_one_layer_is_read_alone(kind):
    tokenizer, given = captioned(kind, text_layer=1).eval(), condition()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    other_layer, other_text = given.text.clone(), given.text.clone()
    other_layer[..., :4] += 1
    other_text[..., 4:] += 1
    assert tokenizer.decoder.captions.projection.in_features == 4
    with torch.no_grad():
        code = tokenizer.encode(images, given)
        pictures = [tokenizer.decode(code, Condition(text=text)) for text in (given.text, other_layer, other_text)]
    assert torch.equal(pictures[1], pictures[0]) and not torch.allclose(pictures[2], pictures[0])


def test_layers_are_numbered_from_0():
    text, arguments = torch.arange(6.0).view(1, 1, 6), {"text_tokens": 1, "text_dim": 2, "text_layers": 3}
    read = {n: caption_features(Condition(text=text), arguments | {"text_layer": n}, "it") for n in (0, 2, None)}
    assert [read[n].flatten().tolist() for n in (0, 2, None)] == [[0, 1], [4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    "layer, reason", [(2, ", and the text encoder states 2 layers, from 0 on"), (-1, "; give 0 or more")]
)
def test_a_layer_that_is_not_there_is_refused(layer, reason):
    with pytest.raises(ValueError, match=f"text_layer is {layer}{reason}"):
        captioned("textok", text_layer=layer)


@pytest.mark.parametrize("kind", ["tatitok", "textok"])
def test_what_the_caption_says_need_not_be_in_the_code(kind):
    """Images of one colour, which the caption names: with it they come back, and with that of another they do not."""
    torch.manual_seed(0)
    tokenizer = captioned(kind).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)

    def batch(count: int = 32) -> tuple[Tensor, Condition]:
        colours = torch.rand(count, 3) * 2 - 1
        return colours[..., None, None].expand(-1, -1, 8, 8), Condition(text=colours[:, None].repeat(1, 3, 3)[..., :8])

    for step in range(150):
        images, given = batch()
        rebuilt = tokenizer(images, given, StepDraws(0, step, slice(0, 32), 32))
        optimizer.zero_grad()
        ((rebuilt.images - images).square().mean() + rebuilt.terms["kl"]).backward()
        optimizer.step()
    images, given = batch(64)
    with torch.no_grad():
        code = tokenizer.eval().encode(images, given)
        right, wrong = (
            (tokenizer.decode(code, each) - images).square().mean() for each in (given, given[list(range(64))[::-1]])
        )
    assert right < 0.05 < 0.2 < wrong


def test_commands_that_have_no_captions_refuse_such_a_tokenizer_in_a_line(tmp_path):
    captioned("textok").save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="reads captions, and files of pictures come without") as refusal:
        load_tokenizer_of(str(tmp_path / "tokenizer"), None)
    assert "\n" not in str(refusal.value)
    target, data = find_target(str(tmp_path / "tokenizer")), Data({"kind": "shapes"}, 8)
    with pytest.raises(ValueError, match="give the run that trained it") as refusal:
        captions_of(target, captioned("textok"), data, "held_out")
    assert "\n" not in str(refusal.value)
    plain = build("tokenizers", {"kind": "titok"} | SIZES, image_size=8)
    assert captions_of(target, plain, data, "held_out") is None
