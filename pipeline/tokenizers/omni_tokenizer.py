"""OmniTokenizer: transformers with attention in windows, frames and time, one set of weights for images and clips."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.clip_patches import put_patches, take_patches
from pipeline.nn.image_size import divide
from pipeline.nn.spacetime import FrameTransformer, Reach, TimeTransformer, check_windows
from pipeline.nn.transformer_sizes import check_heads
from pipeline.ranges import Count, ImageSize, Positive, Whole
from pipeline.tokenizers.base import MapTokenizer
from pipeline.validation import Length, at

Reaches = Annotated[list[Reach], Length(1)]


class PatchReader(nn.Sequential):
    """Patches [..., values] to tokens [..., width]: a linear layer between two layer norms."""

    def __init__(self, values: int, width: int):
        super().__init__(nn.LayerNorm(values), nn.Linear(values, width), nn.LayerNorm(width))


class OmniTokenizer(MapTokenizer):
    """Wang et al., arXiv:2406.09399: each frame by attention to all of it or within windows, then causally along time.

    How far attention within frames reaches, all of a frame or a window, is `reach`, one entry a block of the encoder,
    and `decoder_reach`; `temporal_depth` blocks along time come after the former and before the latter. Attention to
    whole frames and along time is by angles, and its positions are those of depthwise convolutions, with `position`
    "rotary" also rotary ones. Feed-forward layers have `feed_forward_width` channels, by default two thirds of
    `feed_forward_ratio` times the width. With `unit_latents` what the bottleneck reads has length one (the released
    codes; the codebook's rows keep their own).

    An image is a clip of one frame, and all of the line reads images. With `clip_patch` above 0 the tokenizer has
    layers for clips too, of which the first frame is an image, and the others are read and made in groups of that many:
    `encode_clip` and `decode_clip`, for 1 + k `clip_patch` frames. Inside, pixels are [-0.5, 0.5], and nothing is
    clamped.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SpacetimeBlock"]
    _repeated_blocks = ["SpacetimeBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        width: Count = 512,
        heads: Count = 8,
        reach: Reaches = ["frame", "frame", "window", "window"],  # noqa: B006  never changed; saved as JSON
        decoder_reach: Reaches = ["frame", "frame", "frame", "frame"],  # noqa: B006
        temporal_depth: Count = 4,
        patch_size: Count = 8,
        window: Count = 8,
        head_width: Count | None = None,
        position: Literal["convolution", "rotary"] = "convolution",
        feed_forward_ratio: Positive = 4.0,
        feed_forward_width: Count | None = None,
        unit_latents: bool = False,
        clip_patch: Whole = 0,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        hidden = feed_forward_width or int(feed_forward_ratio * 2 / 3 * width)
        sizes = (width, heads, head_width or width // heads, hidden)
        pixels = image_channels * patch_size**2
        self.first_patches = PatchReader(pixels, width)
        self.later_patches = PatchReader(pixels * clip_patch, width) if clip_patch else None
        frames = [
            FrameTransformer(self.map_grid, reaches, *sizes, window, position == "rotary")
            for reaches in (reach, decoder_reach)
        ]
        self.frame_encoder, self.time_encoder = frames[0], TimeTransformer(temporal_depth, *sizes)
        self.projection = nn.Linear(width, neck.inputs)
        self.neck = neck
        self.embedding = nn.Linear(neck.dim, width)
        self.time_decoder, self.frame_decoder = TimeTransformer(temporal_depth, *sizes), frames[1]
        self.first_pixels = nn.Linear(width, pixels)
        self.later_pixels = nn.Linear(width, pixels * clip_patch) if clip_patch else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        with at("omni_tokenizer"):
            grid = divide(arguments.image_size, arguments.patch_size, f"patch_size {arguments.patch_size}")
            if "window" in (*arguments.reach, *arguments.decoder_reach):
                check_windows(arguments.window, grid)
        if arguments.head_width is None or "window" in (*arguments.reach, *arguments.decoder_reach):
            check_heads("omni_tokenizer", arguments.width, arguments.heads)
        head_width = arguments.head_width or arguments.width // arguments.heads
        if arguments.position == "rotary" and head_width % 4:
            raise ValueError(f"omni_tokenizer: position=rotary needs heads of 4, 8, ... channels, not {head_width}")
        return components.build("bottlenecks", arguments.bottleneck).spec(grid)

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(transforms="window" not in arguments.decoder_reach)

    def encode_map(self, images: Tensor) -> Tensor:
        return self.read(images[:, :, None])[:, :, 0]

    def decode_map(self, maps: Tensor) -> Tensor:
        return self.paint(maps[:, :, None])[:, :, 0]

    def read(self, clip: Tensor) -> Tensor:
        """Frames [B, channels, T, H, W] in [-1, 1] to what the bottleneck reads, [B, neck.inputs, T', h, w]."""
        frames = clip / 2
        tokens = self.first_patches(take_patches(frames[:, :, :1], self.config.patch_size))
        if clip.shape[2] > 1:
            self.check_frames(clip.shape[2])
            later = take_patches(frames[:, :, 1:], self.config.patch_size, self.config.clip_patch)
            tokens = torch.cat([tokens, self.later_patches(later)], dim=1)
        h = self.projection(self.time_encoder(self.frame_encoder(tokens)))
        return (F.normalize(h, dim=-1) if self.config.unit_latents else h).movedim(-1, 1)

    def paint(self, maps: Tensor) -> Tensor:
        """z [B, C, T', h, w] at the bottleneck's own scale to frames [B, channels, T, H, W]."""
        h = self.frame_decoder(self.time_decoder(self.embedding(maps.movedim(1, -1))))
        frames = put_patches(self.first_pixels(h[:, :1]), self.config.patch_size)
        if h.shape[1] > 1:
            later = put_patches(self.later_pixels(h[:, 1:]), self.config.patch_size, self.config.clip_patch)
            frames = torch.cat([frames, later], dim=2)
        return frames * 2

    def check_frames(self, frames: int) -> None:
        """ValueError for a clip that this tokenizer has no layers for."""
        patch = self.config.clip_patch
        if not patch:
            raise ValueError("this tokenizer reads images; one of clips is built with clip_patch")
        if (frames - 1) % patch:
            raise ValueError(f"a clip has 1 + k {patch} frames, not {frames}; leave out some")

    def encode_clip(self, clip: Tensor, draws: Draws | None = None) -> Code:
        """The code of frames [B, channels, T, H, W] at unit scale, [B, T' h w] tokens; draws as in `encode`."""
        self.grid(clip[:, :, 0])
        code, _ = self.neck(self.read(clip).flatten(2).mT, draws)
        return Code(z=self.normalize(code.z), ids=code.ids)

    def decode_clip(self, code: Code, grid: tuple[int, int] | None = None) -> Tensor:
        """Frames of a clip's code at unit scale, the inverse of `encode_clip`; `grid` as in `render`."""
        z, grid = self.decoder_input(code), grid or self.map_grid
        if z.shape[1] % (grid[0] * grid[1]):
            raise ValueError(f"{z.shape[1]} tokens fill no maps of {grid[0]}x{grid[1]}; state grid=(h, w)")
        if z.shape[1] > grid[0] * grid[1] and not self.config.clip_patch:
            self.check_frames(2)
        return self.paint(z.mT.unflatten(2, (-1, *grid)))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.first_pixels.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        readers, painters = [self.first_patches, self.later_patches], [self.first_pixels, self.later_pixels]
        encoder = [*readers, self.frame_encoder, self.time_encoder, self.projection, self.neck]
        decoder = [self.embedding, self.time_decoder, self.frame_decoder, *painters]
        return {
            "encoder": [module for module in encoder if module is not None],
            "decoder": [module for module in decoder if module is not None],
        }
