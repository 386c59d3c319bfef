"""The 1-D tokenizer whose transformers merge the image's tokens on the way: any size of image, one number of tokens."""

from collections.abc import Sequence

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.class_projection import ProjectsClassFeatures
from pipeline.nn.grid_transformer import initialise
from pipeline.nn.image_size import Sides, divide
from pipeline.nn.merging_transformer import MergingEncoder, SplittingDecoder
from pipeline.nn.patch_heads import LinearHead
from pipeline.nn.transformer_sizes import both_sizes, check_heads
from pipeline.ranges import Count, Counts, ImageSize
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError, at


class MergingViT(ProjectsClassFeatures, Tokenizer):
    """The autoencoder of Instella-T2I (arXiv:2506.21022): `tokens` learned tokens read the image, and are the code.

    Encoder and decoder are transformers of `width`, `depth` and `heads`, the decoder's the same unless given. After
    `merge_after` blocks of the encoder, 1 the first, the map of the image's tokens is halved in each side; the
    decoder begins on the smallest map, and doubles it after `split_after` blocks. A head's channels are those of
    `rotary_axes`: of the number of a latent token, of rows and of columns. No weight belongs to a size of images.

    Pixels are [-1, 1] inside as outside, and nothing is clamped.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PlainBlock"]
    _repeated_blocks = ["PlainBlock"]
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
        merge_after: list[Count] = [8],  # noqa: B006  never changed; saved as JSON
        decoder_width: Count | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        split_after: list[Count] = [8],  # noqa: B006
        rotary_axes: Counts = [8, 28, 28],  # noqa: B006
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec = self.geometry(arguments)
        (width, depth, heads), (wide, deep, many) = both_sizes(arguments)
        self.grid = patch_grid(arguments)
        reading = {"depth": depth, "heads": heads, "axes": rotary_axes, "places": merge_after}
        self.encoder = MergingEncoder(tokens, patch_size, neck.inputs, image_channels, width, **reading)
        making = {"depth": deep, "heads": many, "axes": rotary_axes, "places": split_after}
        self.decoder = SplittingDecoder(neck.dim, wide, **making)
        self.output = LinearHead(wide, patch_size, image_channels)
        for part in (self.encoder, self.decoder, self.output):
            initialise(part)
        self.neck = neck

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        axes = arguments.rotary_axes
        for (width, depth, heads), name in zip(both_sizes(arguments), ("merge_after", "split_after")):
            check_heads("merging_vit", width, heads)
            check_places(name, arguments[name], depth)
            if len(axes) != 3 or any(count % 2 for count in axes) or sum(axes) != width // heads:
                raise SettingError(
                    "rotary_axes", f" is {list(axes)}; give three even numbers that add up to {width // heads},"
                    f" the channels of a head of width {width} with {heads} heads"
                )  # fmt: skip
        patch_grid(arguments)
        neck = components.build("bottlenecks", arguments.bottleneck)
        return neck.spec((arguments.tokens,))

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(prefixes=True, projection_width=arguments.width)

    def projection(self, features: Tensor) -> Tensor:
        return self.encoder.projection(features)

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return self.encoder(images)

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        """As in the base; of fewer tokens, for a tokenizer that was trained with `prefix_drop`, the first ones."""
        self.check_prefix(z)
        return self.output(self.decoder(z, self.grid), self.grid)

    def position_tokens(self, name: str, output: Tensor) -> Tensor:
        if output.ndim != 3 or ".blocks." not in name or output.shape[1] <= self.config.tokens:
            return super().position_tokens(name, output)
        return output[:, self.config.tokens :]

    @property
    def last_layer(self) -> nn.Parameter:
        return self.output.last_layer

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.encoder, self.neck], "decoder": [self.decoder, self.output]}


def check_places(name: str, places: Sequence[int], depth: int) -> None:
    """SettingError where a map is to be resampled after blocks that are not there, or not in their order."""
    if list(places) != sorted(set(places)) or any(place > depth for place in places):
        raise SettingError(name, f" is {list(places)}; give numbers of blocks from 1 to {depth}, ascending")


def patch_grid(arguments: Arguments) -> Sides:
    """Rows and columns of the patches; ValueError where the sides of images do not divide by them on every map."""
    levels = max(len(arguments.merge_after), len(arguments.split_after))
    whole = arguments.patch_size * 2**levels
    with at("merging_vit"):
        divide(arguments.image_size, whole, f"{whole}, patch_size {arguments.patch_size} halved {levels} times")
        return divide(arguments.image_size, arguments.patch_size, f"patch_size {arguments.patch_size}")
