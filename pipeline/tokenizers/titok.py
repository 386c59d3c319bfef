"""The 1-D tokenizer: an image as a short sequence of tokens, none of which belongs to a position."""

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.image_size import Sides
from pipeline.nn.latent_transformers import LatentTransformers, patch_grids
from pipeline.nn.maskgit_convolution import Decoder
from pipeline.nn.patch_heads import ConvHead
from pipeline.nn.vision_transformer import initialise
from pipeline.ranges import Count, Counts, ImageSize, Whole
from pipeline.saved_folders import load_tokenizer
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.vision.named_model import NamedModel


class ProxyHead(EntryPoints):
    """States [B, patches, width] to logits over a codebook of pixels, and to the image that these stand for.

    The image is the convolutional decoder's of the codebook's rows, weighted by the softmax of the logits.
    """

    entry_points = ("decode_logits",)

    def __init__(self, width: Count, grid: Sides, vocab: int, dim: int, widths: list[int], blocks: int, channels: int):
        super().__init__()
        self.grid = grid
        self.logits = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, vocab))
        initialise(self.logits)
        self.codebook = nn.Parameter(torch.randn(vocab, dim) / vocab)
        self.decoder = Decoder(dim, widths, blocks, channels=channels)

    def decode_logits(self, logits: Tensor) -> Tensor:
        """Logits [B, patches, vocab] to images [B, channels, H, W]."""
        rows = logits.softmax(dim=-1) @ self.codebook  # [B, patches, dim]
        return self.decoder(rows.transpose(1, 2).unflatten(2, self.grid))

    def forward(self, h: Tensor) -> Tensor:
        return self.decode_logits(self.logits(h))


class TiTok(LatentTransformers, Tokenizer):
    """Yu et al., arXiv:2406.07550: `tokens` learned tokens read the image beside its patches, and are the code.

    Encoder and decoder are vision transformers of `width`, `depth` and `heads`, the decoder's the same unless given; so
    are its patches. `head` says how it makes pixels: "pixels" by a linear layer per patch, "proxy" by the logits of
    another tokenizer's codes, the features `proxy_logits`, and a convolutional decoder of them. The sizes of that
    codebook and decoder are those of the `maskgit_vqgan` that both can start from: its folder is `proxy_start`, which
    is read once, when a new tokenizer is built.

    A phase with train=transformers trains all but pixel codebook and pixel decoder. `interleaved` is how released
    two-stage weights read their latents, see `LatentEncoder`. Inside, pixels are [0, 1], as the released weights
    expect; outside they are [-1, 1], and nothing is clamped.
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock"]
    _repeated_blocks = ["PreNormBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        tokens: Count,
        width: Count,
        depth: Count,
        heads: Count,
        patch_size: Count = 16,
        decoder_width: Count | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        decoder_patch_size: Count | None = None,
        head: Literal["pixels", "proxy"] = "pixels",
        interleaved: bool = False,
        proxy_vocab: Count = 1024,
        proxy_dim: Count = 256,
        proxy_width: Count = 128,
        proxy_multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        proxy_blocks: Whole = 2,
        proxy_start: str | None = None,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec = self.geometry(arguments)
        self.add_transformers(arguments, neck, interleaved=interleaved)
        wide = decoder_width or width
        if head == "proxy":
            widths = [proxy_width * multiplier for multiplier in proxy_multipliers]
            self.output = ProxyHead(
                wide, patch_grids("titok", arguments)[1], proxy_vocab, proxy_dim, widths, proxy_blocks, image_channels
            )
        else:
            self.output = ConvHead(wide, decoder_patch_size or patch_size, image_channels)
            initialise(self.output)
        if proxy_start is not None and torch.empty(0).device.type != "meta":
            self.start_from(proxy_start)
            self.register_to_config(proxy_start=None)  # a saved folder is whole without it

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        return {} if arguments.proxy_start is None else {"proxy_start": NamedModel(arguments.proxy_start)}

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        spec = super().geometry(arguments)
        decoder_patch_size = arguments.decoder_patch_size or arguments.patch_size
        levels = len(arguments.proxy_multipliers)
        stride = 2 ** (levels - 1)
        if arguments.head == "proxy" and stride != decoder_patch_size:
            raise ValueError(
                f"titok: the pixel decoder of {levels} levels makes {stride}x{stride} pixels per patch;"
                f" set decoder_patch_size={stride}, or give proxy_multipliers another length"
            )
        if arguments.head != "proxy" and arguments.proxy_start is not None:
            raise ValueError("titok: proxy_start is for the pixel decoder of head=proxy; set that, or leave it out")
        return spec

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(
            parts=("all", "encoder", "decoder", "transformers"),
            parts_without_pixels=("encoder", "transformers"),
            features=("proxy_logits",) if arguments.head == "proxy" else (),
            prefixes=True,
            # interleaved, the layer reads a mix of the channels of all tokens
            projection_width=None if arguments.interleaved else arguments.width,
        )

    def reconstruct(self, images: Tensor, given: TrainingInputs, pixels: bool = True) -> TokenizerOutput:
        code, z, terms = self.encode_for_training(images, given)
        h = self.states(z)
        if self.config.head == "pixels":
            return TokenizerOutput(self.paint(h) if pixels else None, code, terms)
        logits = self.output.logits(h)
        images = self.output.decode_logits(logits) * 2 - 1 if pixels else None
        return TokenizerOutput(images, code, terms, {"proxy_logits": logits})

    def paint(self, h: Tensor) -> Tensor:
        return super().paint(h) if self.config.head == "pixels" else self.output(h) * 2 - 1

    def start_from(self, folder: str) -> None:
        """Take pixel codebook and decoder from the `maskgit_vqgan` in `folder`; ValueError where they do not fit."""
        other = load_tokenizer(folder, "proxy_start")
        if not isinstance(other, components.find("tokenizers", "maskgit_vqgan")) or not other.spec.vocab:
            given = f"a {type(other).__name__}" + ("" if other.spec.vocab else " without a codebook")
            raise ValueError(f"proxy_start: {folder} holds {given}; name the folder of a maskgit_vqgan with a codebook")
        rows = other.neck.lookup(torch.arange(other.spec.vocab))
        theirs = {"codebook": rows} | {f"decoder.{name}": value for name, value in other.decoder.state_dict().items()}
        ours = {name: value for name, value in self.output.state_dict().items() if not name.startswith("logits.")}
        shapes = [{name: list(value.shape) for name, value in state.items()} for state in (theirs, ours)]
        if shapes[0] != shapes[1]:
            name = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
            raise ValueError(
                f"proxy_start: {name} is {shapes[0].get(name)} in {folder} and {shapes[1].get(name)} here; set"
                " proxy_vocab, proxy_dim, proxy_width, proxy_multipliers and proxy_blocks to the folder's"
            )
        self.output.load_state_dict(theirs | {f"logits.{n}": v for n, v in self.output.logits.state_dict().items()})

    @property
    def last_layer(self) -> nn.Parameter:
        return self.output.last_layer if self.config.head == "pixels" else self.output.decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        parts = super().parts()
        logits = [self.output.logits] if self.config.head == "proxy" else [self.output]
        return parts | {"transformers": [*parts["encoder"], self.decoder, *logits]}
