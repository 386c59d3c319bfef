"""A stock diffusers autoencoder as a tokenizer, by folder or hub id, as it is or trained further."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments
from pipeline.nn import stock_autoencoder
from pipeline.nn.image_size import divide, sides_of
from pipeline.nn.stock_model import StockModel
from pipeline.ranges import Count, ImageSize
from pipeline.tokenizers.base import MapTokenizer, TrainingInputs
from pipeline.validation import NotHere
from pipeline.vision.named_model import NamedModel


class Pretrained(MapTokenizer):
    """Any stock autoencoder of images whose latents are a map: AutoencoderKL, -DC, -Tiny, -RAE and their like.

    `path` is a folder or hub id, `subfolder` the component in it when it holds a pipeline. `dim` (latent channels) and
    `stride` (pixels per latent) must be stated for a hub id, so that a recipe is checked without network; they are
    verified on loading. Its mean and std begin as the stock scaling_factor, shift_factor or latent statistics have
    them, which `latents.statistics=stored` keeps. `stock` is the config that a saved folder keeps of the original; a
    recipe leaves it out.

    A phase may train its decoder (with it post_quant_conv), its encoder (with it quant_conv) or all; until then nothing
    of it has a gradient. It is in evaluation mode always. `divergence` makes the posterior's divergence a term, `kl`,
    for phases that train the encoder.
    """

    given_weights = True

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        path: str,
        subfolder: str | None = None,
        dim: Count | None = None,
        stride: Count | None = None,
        stock: dict[str, Any] | None = None,
        image_channels: Count = 3,
        divergence: bool = False,
    ):
        if stock is None:
            on_meta = torch.empty(0).device.type == "meta"
            if on_meta and named_model(path, subfolder).folder is None:
                raise NotHere("path", f": the sizes of {path} are not known before it is fetched from the hub")
            config = stock_autoencoder.read_config(path, subfolder)
            self.spec, posterior = self.measure(config, Arguments.from_config(self))
            dim, stride = self.spec.dim, sides_of(image_size)[0] // self.spec.grid[0]
            self.register_to_config(dim=dim, stride=stride, stock=config | {"posterior": posterior})
            model = (
                stock_autoencoder.build_empty(config) if on_meta else stock_autoencoder.load(config, path, subfolder)
            )
        else:
            config = {name: value for name, value in stock.items() if name != "posterior"}
            self.spec, posterior = spec_of(image_size, dim, stride), stock["posterior"]
            model = stock_autoencoder.build_empty(config)  # `from_pretrained` fills it
        super().__init__(dim)
        if stock is None:
            mean, std = stock_autoencoder.statistics(config, dim)
            self.mean.copy_(mean), self.std.copy_(std)
        self.autoencoder = model
        if divergence and not posterior:
            raise ValueError(f"divergence: a {type(model).__name__} has no posterior; leave it out")
        self.neck = components.build("bottlenecks", {"kind": "gaussian" if posterior else "identity", "dim": dim})

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        return {} if arguments.stock is not None else {"path": named_model(arguments.path, arguments.subfolder)}

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        image_size, path, dim, stride = (arguments[name] for name in ("image_size", "path", "dim", "stride"))
        if stock_autoencoder.is_folder(path):
            config = stock_autoencoder.read_config(path, arguments.subfolder)
            return cls.measure(config, arguments)[0]
        if dim and stride:
            return spec_of(image_size, dim, stride)
        raise ValueError(
            f"{path} is no folder on this machine; for a hub id state dim (latent channels) and stride (pixels per"
            " latent) beside path, for example dim: 4 and stride: 8 for an SD-VAE"
        )

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("kl",) if arguments.divergence else ()

    @classmethod
    def brings_statistics(cls, arguments: Arguments) -> bool | None:
        if not stock_autoencoder.is_folder(arguments.path):
            return None
        config = stock_autoencoder.read_config(arguments.path, arguments.subfolder)
        mean, std = stock_autoencoder.statistics(config, arguments.get("dim") or 1)
        return bool(mean.any() or (std != 1).any())

    @staticmethod
    def measure(config: dict[str, Any], arguments: Arguments) -> tuple[LatentSpec, bool]:
        """The spec that the autoencoder has, and whether it has a posterior; ValueError where the recipe differs."""
        latents = stock_autoencoder.probe(config, (arguments.image_channels, *sides_of(arguments.image_size)))
        actual = {"dim": latents.dim, "stride": sides_of(arguments.image_size)[0] // latents.grid[0]}
        for name, value in actual.items():
            if arguments[name] not in (None, value):
                raise ValueError(
                    f"the recipe states {name}={arguments[name]}, but that of {arguments.path} is {value}; correct it"
                )
        return LatentSpec(latents.grid, latents.dim), latents.posterior

    def encode_map(self, images: Tensor) -> Tensor:
        maps, _ = stock_autoencoder.encode(self.autoencoder, images)
        return maps

    def decode_map(self, maps: Tensor) -> Tensor:
        return stock_autoencoder.decode(self.autoencoder, maps.contiguous())

    def encode_for_training(self, images: Tensor, given: TrainingInputs) -> tuple[Code, Tensor, dict[str, Tensor]]:
        code, z, terms = super().encode_for_training(images, given)
        return code, z, terms if self.config.divergence else {}

    def train(self, mode: bool = True) -> "Pretrained":
        super().train(mode)
        self.autoencoder.eval()
        return self

    def enable_slicing(self) -> None:
        """One image at a time, as the autoencoder itself does it; tiling alike."""
        self.autoencoder.enable_slicing()

    def disable_slicing(self) -> None:
        self.autoencoder.disable_slicing()

    def enable_tiling(self) -> None:
        self.autoencoder.enable_tiling()

    def disable_tiling(self) -> None:
        self.autoencoder.disable_tiling()

    def check_stock(self) -> None:
        """It is made of one."""

    def stock(self) -> StockModel:
        """The autoencoder itself, in its own class and by its own config: other programs scale its latents by that."""
        return StockModel(self.autoencoder, "Its latents are those of the autoencoder that training began with.")

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Those by which an AsymmetricAutoencoderKL's decoder reads an image beside the code: here it reads none."""
        beside = getattr(self.autoencoder.decoder, "condition_encoder", None)
        return [] if beside is None else list(beside.parameters())

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last matrix or kernel, in the order of registration."""
        return [parameter for parameter in self.autoencoder.decoder.parameters() if parameter.dim() > 1][-1]

    def parts(self) -> dict[str, list[nn.Module]]:
        named = {name: module for name, module in self.autoencoder.named_children() if module is not None}
        encoder = [named[name] for name in ("encoder", "quant_conv") if name in named]
        return {
            "encoder": [*encoder, self.neck],
            "decoder": [named[name] for name in ("post_quant_conv", "decoder") if name in named],
        }


def named_model(path: str, subfolder: str | None) -> NamedModel:
    return NamedModel(path, hub=True, config=f"{subfolder}/config.json" if subfolder else "config.json")


def spec_of(image_size: int | Sequence[int], dim: int, stride: int) -> LatentSpec:
    return LatentSpec(divide(image_size, stride, f"the stride of {stride}; change data.size"), dim)
