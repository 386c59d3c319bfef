"""What every tokenizer promises: images to codes and back, at unit scale."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from torch import Tensor, nn

from pipeline import components
from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.cast_warning import WithoutCastWarning
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.image_size import divide, sides_of, size_setting
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.nn.memory_saving import MemorySaving
from pipeline.nn.own_weight_files import OwnWeightFiles
from pipeline.nn.partly_trained import PartlyTrained
from pipeline.nn.stock_model import StockModel
from pipeline.ranges import RangedArguments
from pipeline.vision.named_model import NamedModel

Perturb = Callable[[Bottleneck, Tensor, Code], Tensor]  # bottleneck, what it read, its code -> z for the decoder
DERIVED_ARGUMENTS = (  # of a class in `choices`, which a recipe may not state
    *("image_size", "image_channels", "maps", "inputs", "stride"),
)


@dataclass(frozen=True)
class TrainingInputs:
    """What a training passes to a tokenizer with the images."""

    condition: Condition | None = None
    draws: Draws | None = None
    perturb: Perturb | None = None  # gives the decoder's input in place of the code's z


@dataclass
class TokenizerOutput:
    """One pass through a tokenizer in training."""

    images: Tensor | None  # [B, channels, H, W], nominally in [-1, 1]; None after pixels=False
    code: Code  # at the bottleneck's own scale
    terms: dict[str, Tensor]  # the tokenizer's own loss terms, unweighted
    features: dict[str, Any] = field(default_factory=dict)  # tensors of inner layers, for losses that `read` them
    class_features: Tensor | None = None  # [B, C], those that were given to forward, at the code's width
    decoder_input: Tensor | None = None  # [B, N, C], the decoder's input where that is not code.z
    head_outputs: dict[str, Tensor] = field(default_factory=dict)  # of the trained heads of losses, by their term


class Tokenizer(
    RangedArguments, PartlyTrained, EntryPoints, MemorySaving, OwnWeightFiles, WithoutCastWarning, ConfigMixin
):
    """Subclasses write `geometry`, `features` and `render`; the rest is the same for all.

    Images are [B, channels, H, W] in [-1, 1], of the `image_shape`. Codes leave `encode` normalised by the stored mean
    and std and enter `decode` normalised, so that no other stage needs a scaling factor.
    """

    entry_points = ("encode", "decode", "moments", "features", "render", "projection")
    neck: Bottleneck
    spec: LatentSpec
    given_weights: bool = False  # built anew it is trained already, and a recipe may leave out its phases
    choices: dict[str, dict[str, type]] = {}  # arguments that name one of a few classes, and these by their kind
    run_arguments: tuple[str, ...] = ("image_size",)  # may differ from those of a folder that training starts from

    def __init__(self, dim: int, positions: int | None = None):
        """With `positions`, mean and std are of each channel at each position, [positions, dim]; else [dim]."""
        super().__init__()
        shape = (dim,) if positions is None else (positions, dim)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    @classmethod
    @abstractmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        """The spec these constructor arguments give, without building; ValueError where they do not fit together."""

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        """Names of the loss terms that `forward` returns, known without building: those of the bottleneck stated."""
        if "bottleneck" not in arguments:
            return ()
        neck, values = components.check("bottlenecks", arguments.bottleneck)
        return neck.terms(values)

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        """As that of bottlenecks; of the bottleneck stated."""
        if "bottleneck" not in arguments:
            return ()
        neck, values = components.check("bottlenecks", arguments.bottleneck)
        return neck.batch_statistics(values)

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        """What else a tokenizer with these constructor arguments can do, without building."""
        return Capabilities()

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        """The models whose weights it begins with when it is built anew, by the argument that names each."""
        return {}

    @classmethod
    def brings_statistics(cls, arguments: Arguments) -> bool | None:
        """Whether, built anew, it has the mean and std of its codes; None where that is known once it is built."""
        return False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that it is made for."""
        return (self.config.get("image_channels", 3), *sides_of(self.config.image_size))

    def check_prefix(self, z: Tensor) -> None:
        """ValueError unless z [B, n, C] has a token at least, and no more than the code."""
        if not 1 <= z.shape[1] <= self.spec.tokens:
            raise ValueError(f"a code of {z.shape[1]} tokens is not this tokenizer's, which has {self.spec.tokens}")

    def check_images(self, images: Tensor) -> None:
        """ValueError where the sides of images [B, C, H, W] are not those of `image_shape`."""
        if tuple(images.shape[2:]) != self.image_shape[1:]:
            wanted, given = ("x".join(map(str, sides)) for sides in (self.image_shape[1:], images.shape[2:]))
            raise ValueError(f"this tokenizer reads images of {wanted} pixels, not {given}; resize them")

    @property
    def can(self) -> Capabilities:
        return self.capabilities(Arguments.from_config(self))

    @abstractmethod
    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        """Images to what the bottleneck reads, [B, N, neck.inputs]."""

    @abstractmethod
    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        """z [B, N, C] at the bottleneck's own scale to images [B, channels, H, W]."""

    def position_tokens(self, name: str, output: Tensor) -> Tensor:
        """The output of the inner module `name`, a map or tokens, as one token per position, row by row, [B, N, C].

        Overridden where the module also returns tokens that belong to no position.
        """
        return output.flatten(2).mT if output.ndim == 4 else output

    def tokens_within(self, region: Tensor) -> Tensor:
        """Which tokens, [B, N] bool, have a pixel of a region [B, 1, H, W] bool in their cell of the image.

        Raises ValueError where tokens have no place in the image, as those of a 1-D tokenizer.
        """
        if len(self.spec.grid) != 2:
            raise ValueError(
                f"the tokens of a {type(self).__name__} have no place in the image, so that a mask does not tell which"
                " of them stay; leave mask out, and give a strength"
            )
        return F.adaptive_max_pool2d(region.float(), self.spec.grid).flatten(1) > 0

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight that makes pixels, at which adaptive weights compare gradients."""

    def check_stock(self) -> None:
        """ValueError with one line unless a class of diffusers' own can compute this tokenizer."""
        raise ValueError(f"{type(self).__name__} has no stock class in diffusers")

    def stock(self) -> StockModel:
        """The same function as a model of diffusers' own; ValueError where `check_stock` has one."""
        self.check_stock()
        raise NotImplementedError

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules of `encoder` (all before the bottleneck, and it), `decoder` (all after) and further parts."""

    def encode(self, images: Tensor, condition: Condition | None = None, draws: Draws | None = None) -> Code:
        """The code at unit scale: a posterior sample when draws are given, else the mode."""
        code, _ = self.neck(self.by_image(self.features, images, condition), draws)
        return Code(z=None if code.z is None else self.normalize(code.z), ids=code.ids)

    def moments(self, images: Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        """Mean and std [B, N, C] of the posterior at unit scale; ValueError where there is none."""
        mean, std = self.neck.moments(self.by_image(self.features, images, condition))
        return self.normalize(mean), std / self.std

    def decode(self, code: Code, condition: Condition | None = None) -> Tensor:
        """Images from a code at unit scale; from ids through lookup when there is no z."""
        return self.by_image(self.render, self.decoder_input(code), condition)

    def decoder_input(self, code: Code) -> Tensor:
        """What the decoder reads, [B, M, C] at the bottleneck's own scale, of a code at unit scale."""
        z = self.neck.lookup(code.ids) if code.z is None else self.denormalize(code.z)
        return self.neck.decoder_input(z)

    def decode_for_training(self, code: Code, given: TrainingInputs) -> Tensor:
        """As `decode`, as a training runs it; overridden where the decoder then draws what it leaves out."""
        return self.decode(code, given.condition)

    def forward(
        self,
        images: Tensor,
        condition: Condition | None = None,
        draws: Draws | None = None,
        perturb: Perturb | None = None,
        **arguments: Any,
    ) -> TokenizerOutput:
        """Images to images, as in training; `perturb` changes the decoder's input.

        `arguments` are for `reconstruct`.
        """
        perturbed: list[Tensor] = []

        def perturb_and_record(neck: Bottleneck, h: Tensor, code: Code) -> Tensor:
            perturbed.append(perturb(neck, h, code))
            return perturbed[-1]

        given = TrainingInputs(condition, draws, None if perturb is None else perturb_and_record)
        rebuilt = self.reconstruct(images, given, **arguments)
        return replace(rebuilt, decoder_input=perturbed[0]) if perturbed else rebuilt

    def reconstruct(self, images: Tensor, given: TrainingInputs) -> TokenizerOutput:
        """The pass of `forward`; overridden where it differs, or takes further arguments."""
        code, z, terms = self.encode_for_training(images, given)
        return TokenizerOutput(self.render(z, given.condition), code, terms)

    def encode_for_training(self, images: Tensor, given: TrainingInputs) -> tuple[Code, Tensor, dict[str, Tensor]]:
        """The code at the bottleneck's own scale, z [B, N, C] as the decoder reads it, and the terms."""
        return self.apply_bottleneck(self.features(images, given.condition), given)

    def apply_bottleneck(self, h: Tensor, given: TrainingInputs) -> tuple[Code, Tensor, dict[str, Tensor]]:
        """As `encode_for_training`, of features h [B, N, neck.inputs]."""
        code, terms = self.neck(h, given.draws)
        z = code.z if given.perturb is None else given.perturb(self.neck, h, code)
        return code, self.neck.decoder_input(z, h), terms

    def normalize(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.std

    def denormalize(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean


class MapTokenizer(Tokenizer):
    """A tokenizer whose code is a feature map, one token per position; subclasses write `encode_map` and `decode_map`.

    Images of any sides that the stride divides pass through `forward`. For a code of another grid than `map_grid`,
    `render` and `decode` take that `grid`. A bottleneck that makes levels of the map has one size of map, and a code of
    as many tokens as the levels have.
    """

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(transforms=True)

    @classmethod
    def spec_of_levels(cls, arguments: Arguments, patch_size: int) -> LatentSpec:
        """The spec where each level but the first halves the sides of an image, or of its patches."""
        levels, sides = len(arguments.multipliers), sides_of(arguments.image_size)
        stride = patch_size * 2 ** (levels - 1)
        near = [round(side / stride) * stride or stride for side in sides]
        grid = divide(
            sides,
            stride,
            f"{stride}, the stride of {levels} levels; set data.size={size_setting(near)},"
            " or give tokenizer.model.multipliers fewer entries",
        )
        neck = components.build("bottlenecks", arguments.bottleneck)
        return neck.spec(grid)

    @abstractmethod
    def encode_map(self, images: Tensor) -> Tensor:
        """Images to what the bottleneck reads, as maps [B, neck.inputs, h, w]."""

    @abstractmethod
    def decode_map(self, maps: Tensor) -> Tensor:
        """z as maps [B, C, h, w], channels-last in memory, at the bottleneck's own scale, to images."""

    @property
    def map_grid(self) -> tuple[int, ...]:
        """Height and width of the map that the decoder reads: of the code, or of the finest of its levels."""
        return (math.isqrt(self.spec.levels[-1]),) * 2 if self.spec.levels else self.spec.grid

    @property
    def stride(self) -> int:
        """Pixels per position of the map along a side."""
        return self.image_shape[1] // self.map_grid[0]

    def tokens_within(self, region: Tensor) -> Tensor:
        """As in the base; of a code with levels those of every level, each a map of the whole image.

        A token of a level counts as within the region where half of its cell is, so that one which is mostly of what
        lies outside stays; one of the finest level, as in the base, where any pixel is.
        """
        if not self.spec.levels:
            return super().tokens_within(region)
        sides = [math.isqrt(tokens) for tokens in self.spec.levels]
        shares = [F.adaptive_avg_pool2d(region.float(), side).flatten(1) >= 0.5 for side in sides[:-1]]
        return torch.cat([*shares, F.adaptive_max_pool2d(region.float(), sides[-1]).flatten(1) > 0], dim=1)

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width in pixels of the tiles of an image, whose map has the size of `map_grid`."""
        height, width = self.map_grid
        return height * self.stride, width * self.stride

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Height and width of the code of `images`; ValueError where a side does not divide by the stride."""
        (height, width), stride = images.shape[2:], self.stride
        if height % stride or width % stride:
            raise ValueError(f"images of {height}x{width} pixels do not divide by the stride of {stride}")
        return height // stride, width // stride

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.grid(images)
        return self.encode_map(images).flatten(2).transpose(1, 2)

    def render(self, z: Tensor, condition: Condition | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """z [B, N, C] at the bottleneck's own scale to images; `grid` is height and width, `map_grid` when None."""
        grid = grid or self.map_grid
        if z.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{z.shape[1]} tokens do not fill a grid of {grid[0]}x{grid[1]}; state grid=(h, w)")
        return self.decode_map(z.transpose(1, 2).unflatten(2, grid))

    def reconstruct(
        self, images: Tensor, given: TrainingInputs, transform: MapTransform = UNCHANGED
    ) -> TokenizerOutput:
        """As in the base; `transform` is applied to the map that the decoder reads."""
        code, z, terms = self.encode_for_training(images, given)
        return TokenizerOutput(self.decode_map(self.decoder_map(images, z, transform)), code, terms)

    def decoder_map(self, images: Tensor, z: Tensor, transform: MapTransform = UNCHANGED) -> Tensor:
        """z [B, N, C] of the code of `images` as the map [B, C, h, w] that the decoder reads."""
        return transform(z.transpose(1, 2).unflatten(2, self.grid(images)))

    def decode(self, code: Code, condition: Condition | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Images from a code at unit scale; `grid` as in `render`."""
        z = self.decoder_input(code)
        return self.by_image(lambda row, condition_of_row: self.render(row, condition_of_row, grid), z, condition)
