"""The 1-D tokenizer whose encoder and decoder both read the caption of an image."""

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config

from pipeline import components
from pipeline.components import Arguments, Node
from pipeline.nn.latent_transformers import LatentTransformers
from pipeline.nn.patch_heads import LinearHead
from pipeline.nn.vision_transformer import initialise
from pipeline.ranges import Count, ImageSize, Whole
from pipeline.tokenizers.base import Tokenizer


class TexTok(LatentTransformers, Tokenizer):
    """Zha et al., arXiv:2412.05796: an image as `tokens` tokens that hold what its caption does not say.

    The encoder's sequence is the patches of the image, `tokens` learned tokens, which become the code, and the features
    of the caption through a linear layer; the decoder's is a learned token per patch, the code, and the caption again.
    A code is therefore of an image with its caption: decoded with another caption it is another image. Both are vision
    transformers of `width`, `depth` and `heads`, the decoder's the same unless given; so are its patches. Pixels are
    made by a linear layer per patch. Of the layers that the text encoder gives all are read, joined, or `text_layer`
    alone, by its number among them, from 0 on.

    No code of the authors is public. Inferred: learned positions of all members of a sequence, a norm before the first
    block as in TiTok, the decoder's patches as one learned token that differs by its position, that padded places of
    the caption are attended to, and the linear layer. Pixels are [-1, 1] inside as outside, and nothing is clamped.
    """

    reads_captions = ("encoder", "decoder")
    class_token = False
    offset, factor = 0.0, 1.0
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
        self.output = LinearHead(decoder_width or width, decoder_patch_size or patch_size, image_channels)
        initialise(self.output)
