"""The convolutional autoencoder of MaskGIT."""

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Node
from pipeline.draws import Draws
from pipeline.nn.maskgit_convolution import Decoder, Encoder
from pipeline.tokenizers.base import Perturb, Rebuilt, Tokenizer


class MaskgitVqgan(Tokenizer):
    """Chang et al., arXiv:2202.04200, as released in PyTorch with TiTok (bytedance/1d-tokenizer).

    Without attention: `width * multipliers[i]` channels at level i (0 is full resolution), `blocks` residual blocks a
    level, mean pooling on the way down and nearest neighbours on the way up, so that the stride is 2 ** (levels - 1).
    The encoder ends in what the bottleneck reads and the decoder begins with what it gives. Inside, pixels are [0, 1],
    as the released weights expect; outside they are [-1, 1], and nothing is clamped. Images of any sides that the
    stride divides pass through `forward`; a code of another grid than `spec.grid` needs it stated to `render` and
    `decode`.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: int,
        bottleneck: Node,
        width: int = 128,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        blocks: int = 2,
        groups: int = 32,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(image_size, bottleneck, multipliers)
        widths = [width * multiplier for multiplier in multipliers]
        self.encoder = Encoder(neck.inputs, widths, blocks, groups)
        self.neck = neck
        self.decoder = Decoder(neck.dim, widths, blocks, groups)
        self.stride = 2 ** (len(multipliers) - 1)

    @classmethod
    def geometry(
        cls,
        image_size: int,
        bottleneck: Node,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006
        **arguments,
    ) -> LatentSpec:
        if not multipliers:
            raise ValueError("multipliers is empty; maskgit_vqgan needs one entry a level, for example [1,1,2,2,4]")
        stride = 2 ** (len(multipliers) - 1)
        if image_size % stride:
            near = round(image_size / stride) * stride or stride
            raise ValueError(
                f"images of {image_size} pixels do not divide by {stride}, the stride of {len(multipliers)} levels;"
                f" set data.size={near}, or give tokenizer.model.multipliers fewer entries"
            )
        neck = components.build("bottlenecks", bottleneck)
        side = image_size // stride
        return LatentSpec((side, side), neck.dim, neck.vocab, neck.codebooks)

    @classmethod
    def projection_width(
        cls,
        width: int = 128,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006
        **arguments,
    ) -> int:
        return width * multipliers[-1]

    def projection(self, features: Tensor) -> Tensor:
        return self.encoder.conv_out(features[:, :, None, None])[:, :, 0, 0]

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.grid(images)
        return self.encoder((images + 1) / 2).flatten(2).transpose(1, 2)

    def render(self, z: Tensor, condition: Condition | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """z [B, N, C] at the bottleneck's own scale to images; `grid` is height and width, `spec.grid` when None."""
        grid = grid or self.spec.grid
        if z.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{z.shape[1]} tokens do not fill a grid of {grid[0]}x{grid[1]}; state grid=(h, w)")
        maps = z.transpose(1, 2).unflatten(2, grid)
        if not self.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
            maps = maps.contiguous()  # else the whole decoder would run in channels-last, the layout of z
        return self.decoder(maps) * 2 - 1

    def forward(
        self,
        images: Tensor,
        condition: Condition | None = None,
        draws: Draws | None = None,
        perturb: Perturb | None = None,
        class_features: Tensor | None = None,
    ) -> Rebuilt:
        code, z, terms = self.squeezed(images, condition, draws, perturb)
        made = self.render(z, condition, self.grid(images))
        return Rebuilt(made, code, terms, projected=self.projected(class_features))

    @apply_forward_hook
    def decode(self, code: Code, condition: Condition | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Images from a code at unit scale; `grid` as in `render`."""
        z = self.neck.lookup(code.ids) if code.z is None else self.denormalize(code.z)
        return self.render(z, condition, grid)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Height and width of the code of `images`; ValueError where a side does not divide by the stride."""
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height}x{width} pixels do not divide by the stride of {self.stride}")
        return height // self.stride, width // self.stride

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.encoder, self.neck], "decoder": [self.decoder]}
