"""The convolutional VQ tokenizers of MaskGIT and LlamaGen: what their values cannot show, and reading their files."""

from pathlib import Path

import pytest
import torch
from golden_kinds import Case
from torch import Tensor

from pipeline.code import Code, LatentSpec
from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.components import Arguments
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.nn.maskgit_convolution import ResidualBlock
from pipeline.published import formats, llamagen_vq, maskgit_vqgan
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.maskgit_vqgan import MaskgitVqgan
from pipeline.training.reconstruction import Reconstruction

SIZE = 8
NECKS = {
    "vq": {"kind": "vector_quantize", "dim": 4, "vocab": 16, "unit_norm": False},
    "unit_vq": {"kind": "vector_quantize", "dim": 4, "vocab": 16},
    "gaussian": {"kind": "gaussian", "dim": 3},
}
GOLDEN = Path(__file__).parents[1] / "golden"


def maskgit(neck: str = "vq", **changes) -> MaskgitVqgan:
    torch.manual_seed(0)
    return MaskgitVqgan(SIZE, NECKS[neck], **({"width": 8, "multipliers": [1, 2], "blocks": 1} | changes)).eval()


def pictures(count: int = 2, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("inputs, outputs", [(8, 8), (8, 16)])
def test_where_the_width_changes_the_input_is_left_out(inputs, outputs):
    block = ResidualBlock(inputs, outputs, groups=4)
    for parameter in block.conv2.parameters():
        torch.nn.init.zeros_(parameter)  # the branch is 0
    x = torch.randn(1, inputs, 4, 4)
    assert torch.equal(block(x), x if inputs == outputs else torch.zeros(1, outputs, 4, 4))


@torch.no_grad()
@pytest.mark.parametrize("neck", NECKS)
def test_any_bottleneck_and_any_sides_that_the_stride_divides(neck):
    tokenizer, images = maskgit(neck), pictures(2, 4, 12)
    code = tokenizer.encode(images)
    made = tokenizer(images)
    assert made.images.shape == images.shape
    assert set(made.terms) == set(MaskgitVqgan.terms(Arguments.from_config(tokenizer)))
    torch.testing.assert_close(tokenizer.decode(code, grid=(2, 6)), made.images, atol=1e-4, rtol=1e-4)
    if code.ids is not None:
        ids_alone = tokenizer.decode(Code(z=None, ids=code.ids), grid=(2, 6))
        torch.testing.assert_close(ids_alone, made.images, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"state grid=\(h, w\)"):
        tokenizer.decode(code)
    with pytest.raises(ValueError, match="8x7 pixels do not divide"):
        tokenizer.encode(pictures(1, 8, 7))


def test_geometry_is_known_without_building():
    def geometry(**given):
        return MaskgitVqgan.geometry(Arguments.complete(MaskgitVqgan, {"bottleneck": NECKS["vq"]} | given))

    assert geometry(image_size=256) == LatentSpec((16, 16), 4, 16)
    with pytest.raises(ValueError, match="do not divide by 16.*data.size=256"):
        geometry(image_size=250)


def test_parts_hold_every_parameter_once():
    tokenizer = maskgit()
    held = [p for part in ("encoder", "decoder") for p in tokenizer.trainable(part)]
    assert sorted(map(id, held)) == sorted(id(p) for p in tokenizer.parameters())
    assert any(p is tokenizer.last_layer for p in tokenizer.trainable("decoder"))


def test_training_brings_the_images_nearer_and_moves_every_part():
    tokenizer, images = maskgit(), pictures(4)
    phase = Phase(Loop(30, {"tokenizer": 3e-3}), {"pixel": 1.0, "vq": 1.0, "commit": 0.25})
    task = Reconstruction(tokenizer, phase, {"pixel": Pixel()})
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    before = {name: p.detach().clone() for name, p in tokenizer.named_parameters()}
    pixel = []
    for step in range(30):
        draws = StepDraws(0, step, slice(0, 4), 4)
        ((_, terms),) = task.turns(ImageBatch(images), draws, step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        pixel.append(float(terms["pixel"].detach()))
    assert pixel[-1] < 0.8 * pixel[0]
    assert not [name for name, p in tokenizer.named_parameters() if torch.equal(p, before[name])]


@torch.no_grad()
@pytest.mark.parametrize("name, format", [("llamagen_vq", llamagen_vq), ("maskgit_vqgan", maskgit_vqgan)])
def test_the_command_writes_a_folder_that_loads(name, format, tmp_path):
    case = Case(GOLDEN / name)
    torch.save({"model": case.state} if name == "llamagen_vq" else case.state, tmp_path / "file.pt")
    import_checkpoint([name, str(tmp_path / "file.pt"), str(tmp_path / "out")])
    made = format.convert(case.state)["tokenizer"]
    images = pictures(1, 16, 16)
    found = type(made).from_pretrained(tmp_path / "out")
    assert torch.equal(found(images).images, made(images).images)
    assert name in formats()


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments",
    [
        {"multipliers": [1, 1, 2], "attention": [2], "z_channels": 6},
        {"multipliers": [1, 2], "attention": [1], "z_channels": 4, "blocks": 1, "decoder_width": 16},
    ],
)
def test_llamagen_arguments_are_read_off_the_shapes(arguments):
    tokenizer = ConvAutoencoder(256, NECKS["unit_vq"] | {"unit_norm": True}, width=8, **arguments)
    found = llamagen_vq.convert(as_llamagen(tokenizer.state_dict()))["tokenizer"]
    public = [name for name in tokenizer.config if not name.startswith("_")]
    assert {n: found.config[n] for n in public} == {n: tokenizer.config[n] for n in public}
    assert torch.equal(found(pictures()).images, tokenizer.eval()(pictures()).images)


WORDS = {  # of our keys, and LlamaGen's for them
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.0",
    "mid_block.attentions.0": "mid.1",
    "mid_block.resnets.1": "mid.2",
    "down_blocks": "conv_blocks",
    "up_blocks": "conv_blocks",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "res",
    "attentions": "attn",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_": "",
    "neck.codebook": "quantize.embedding.weight",
}


def as_llamagen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        if key not in ("mean", "std"):
            matrix = ".attentions." in key and value.dim() == 2
            for ours, theirs in WORDS.items():
                key = key.replace(ours, theirs)
            found[key] = value[:, :, None, None] if matrix else value
    return found


def test_other_keys_are_errors():
    """All but the statistics of LlamaGen's codebook, which the golden case holds."""
    llama, mask = Case(GOLDEN / "llamagen_vq").state, Case(GOLDEN / "maskgit_vqgan").state
    assert "quantize.codebook_used" in llama
    for format, state, lost in (
        (llamagen_vq, llama, "decoder.mid.1.k.bias"),
        (maskgit_vqgan, mask, "encoder.mid.0.conv1.weight"),
    ):
        with pytest.raises(ValueError, match="unexpected.*decoder.extra.weight"):
            format.convert(state | {"decoder.extra.weight": torch.zeros(1)})
        with pytest.raises(ValueError, match="1 weights are missing"):
            format.convert({key: value for key, value in state.items() if key != lost})
    with pytest.raises(ValueError, match="not a LlamaGen VQ checkpoint"):
        llamagen_vq.convert({"blocks.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a MaskGIT-VQGAN checkpoint"):
        maskgit_vqgan.convert(llama)
