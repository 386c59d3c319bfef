"""The 1-D tokenizer whose decoder reads the caption of an image beside its tokens."""

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config

from pipeline import components
from pipeline.components import Arguments, Node
from pipeline.nn.latent_transformers import LatentTransformers
from pipeline.nn.patch_heads import ConvHead
from pipeline.nn.vision_transformer import initialise
from pipeline.ranges import Count, ImageSize, Whole
from pipeline.tokenizers.base import Tokenizer


class TATiTok(LatentTransformers, Tokenizer):
    """Kim et al., arXiv:2501.07730: TiTok's single stage, and in the decoder's sequence the caption.

    The encoder sees the image alone: `tokens` learned tokens beside its patches are the code. The decoder's sequence
    is a class token and a mask token per patch, the code, and the features of the caption, all of whose `text_tokens`
    places are attended to, padded or not. Both are vision transformers of `width`, `depth` and `heads`, the decoder's
    the same unless given; so are its patches. Pixels are made by a linear layer per patch and a 3x3 convolution. Of the
    layers that the text encoder gives all are read, joined, or `text_layer` alone, by its number among them, from 0 on.

    Inside, pixels are [0, 1], as the released weights expect; outside they are [-1, 1], and nothing is clamped.
    """

    reads_captions = ("decoder",)
    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock"]
    _repeated_blocks = ["PreNormBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        text_tokens: Whole,
        text_dim: Whole,
        text_layers: Count,
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
        text_layer: Whole | None = None,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec = self.geometry(arguments)
        self.add_transformers(arguments, neck)
        self.output = ConvHead(decoder_width or width, decoder_patch_size or patch_size, image_channels)
        initialise(self.output)
