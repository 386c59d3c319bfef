"""What every network promises: a prediction for noisy codes, no sampling and no loss."""

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.cast_warning import WithoutCastWarning
from pipeline.nn.class_token import count_token_rows
from pipeline.nn.conditions import NO_TEXT, fields_read, null_of, pick_layer, refuse_text, select, text_spec
from pipeline.nn.embeddings import resample_positions
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.lora import Adapted
from pipeline.nn.own_weight_files import OwnWeightFiles
from pipeline.nn.stock_model import StockModel
from pipeline.nn.stock_transformer import CONDITIONS
from pipeline.nn.text import Caption, TextReader
from pipeline.nn.token_denoiser import TokenDenoiser
from pipeline.nn.tokens import take_places
from pipeline.ranges import RangedArguments
from pipeline.validation import SettingError

Role = Literal["denoiser", "causal", "masked", "masked_latent", "bit_denoiser", "levels"]  # see Network.role
Tapped = tuple[Tensor, list[Tensor]]  # a prediction, and hidden states on the way to it
Part = Literal["labels", "text", "positions", "codes"]  # see Network.parts
ARGUMENTS: dict[Part, tuple[str, ...]] = {  # of the constructor, which the sizes of a part follow from
    "labels": ("num_classes",),
    "text": (*NO_TEXT, "text_reading", "text_projection", "text_null"),
    "positions": ("grid", "levels", "segments", "position_grid"),
    "codes": ("dim", "vocab", "codebooks", "outputs", "patch_size", "class_token", "ends"),
}


class Network(RangedArguments, EntryPoints, OwnWeightFiles, WithoutCastWarning, ConfigMixin):
    """A generator's network. Its shape (grid, dim, vocab, ...) is derived, never stated.

    A constructor takes those of the derived values that it needs, under these names; one that takes `class_token`, a
    width, reads and predicts such a token below the code, see `state_shape`.

    `role` says what it predicts, and so which objectives can train it: a `denoiser` predicts from a noisy code, a
    `causal` network the next id from those before it, a `masked` one all ids from those that are known, a
    `masked_latent` one denoises each continuous token from those that are known, a `bit_denoiser` tells which bits of
    noisy ids are wrong, one of `levels` predicts all ids of a level from the levels before it.

    `parts` names the modules and parameters that depend on the data: the table of classes (`labels`), what reads
    captions (`text`), learned positions (`positions`), and the layers that read and predict codes (`codes`); * stands
    for any number. All else is blocks, each of which has an `attention` and a `feed_forward`, the embedding of time,
    and norms. `code_tables` names the parameters whose first axis is codes, one row for each: the last * is the number
    of the codebook, one before it that of the segment. Rows behind those of the codes belong to none of them.

    It reads the labels of a condition where it has classes, and the caption where it has `text_tokens`. What is not
    given, the null label and a caption of which `text_mask` holds no place ask for nothing, each by itself.
    """

    parts: Mapping[Part, tuple[str, ...]]
    code_tables: tuple[str, ...] = ()
    reads_mixtures: bool = False  # whether it takes mixtures [B, N, 1, vocab] in place of the ids of one codebook
    entry_points = ("tap_blocks",)
    role: Role = "denoiser"
    taken: tuple[str, ...] = ()  # buffers that it takes of a tokenizer's bottleneck, see `take_bottleneck`
    run_arguments: tuple[str, ...] = ("condition_drop",)  # may differ from those of a folder that training starts from
    class_names: dict[int, str] | None = None  # by label, in the last pipeline it was a part of; not saved

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """ValueError where these constructor arguments, derived ones included, do not fit; known without building."""

    @abstractmethod
    def forward(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None = None, taps: Sequence[int] = ()
    ) -> Tensor | Tapped:
        """hidden_states [B, N, dim] at noise levels `time` [B] (float32, 1 is pure noise) to [B, N, outputs * dim].

        With a class token both have its rows below, as `join_token` puts them there. With `taps`,
        numbers of blocks (1 is the first), it returns (prediction, hidden states after these blocks, in the order of
        `taps`), each [B, M, width]: a row per patch, where codes are read in patches, and before them one of the class
        token where there is one. Networks of ids take ids and
        neither time nor taps; their inputs and outputs are in their own docstrings.
        """

    def check_stock(self) -> None:
        """ValueError with one line unless a class of diffusers' own can compute this network."""
        raise ValueError(f"{type(self).__name__} has no stock class in diffusers; one is {CONDITIONS}")

    def stock(self) -> StockModel:
        """The same function as a model of diffusers' own; ValueError where `check_stock` has one."""
        self.check_stock()
        raise NotImplementedError

    def tap_blocks(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None, taps: Sequence[int]
    ) -> list[Tensor]:
        """As `forward`, the hidden states after the blocks `taps` alone; blocks behind the last of them do not run."""
        raise ValueError(f"a {type(self).__name__} has no hidden states of patches")

    @property
    def state_shape(self) -> tuple[int, int]:
        """Of the noisy state of one image that it reads, [N, dim]: the code, and below it the class token's rows."""
        config = self.config
        return math.prod(config.grid) + count_token_rows(config.get("class_token", 0), config.dim), config.dim

    @classmethod
    def is_of(cls, name: str, parts: Collection[Part]) -> bool:
        """Whether the parameter of this name is of one of the parts."""
        words = name.split(".")
        roots = [root.split(".") for part in parts for root in cls.parts.get(part, ())]
        return any(all(map(fits_word, words, root)) for root in roots if len(root) <= len(words))

    @classmethod
    def table_of(cls, name: str) -> tuple[int, int] | None:
        """The segment and the codebook of whose codes the parameter of this name has a row each; None: of no codes."""
        words = name.split(".")
        for root in (root.split(".") for root in cls.code_tables):
            if len(root) == len(words) and all(map(fits_word, words, root)):
                numbers = [int(word) for word, one in zip(words, root) if one == "*"]
                segment, codebook = (0, 0, *numbers)[-2:]
                return segment, codebook
        return None

    def adapted_layers(self, layers: Adapted) -> list[str]:
        """The names of the linear layers, in all blocks, that an adapter of `layers` changes."""
        modules = dict(self.named_modules())
        blocks = [name for name, module in modules.items() if type(module).__name__ in self._repeated_blocks]
        parts = tuple(f"{name}." if layers == "all" else f"{name}.{layers}." for name in blocks)
        return [name for name, module in modules.items() if isinstance(module, nn.Linear) and name.startswith(parts)]

    @torch.no_grad()
    def begin_from(
        self,
        other: "Network",
        new: Collection[Part] = (),
        resampled: Collection[Part] = (),
        tables: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take the weights of `other`, of the same class; parts that are `new` keep those of this network.

        Learned positions that are `resampled` are those of its grid at the places of this one's. `tables` are weights
        by name that are taken in place of its own. RuntimeError where a weight of another part is missing, or of
        another shape.
        """
        own = self.state_dict()
        weights = {name: weight for name, weight in other.state_dict().items() if not self.is_of(name, new)}
        weights |= tables or {}
        for name in [name for name in weights if self.is_of(name, resampled)]:
            weights[name] = self.resample(name, weights[name], other)
        taken = [name for name in self.taken if name in weights and weights[name].shape != own[name].shape]
        weights = {name: weight for name, weight in weights.items() if name not in taken}
        self.load_state_dict({name: own[name] for name in own if name in taken or self.is_of(name, new)} | weights)

    def resample(self, name: str, weight: Tensor, other: "Network") -> Tensor:
        """A table of learned positions of `other`, at the places of this network."""
        return resample_positions(weight, self.patch_grid(other.config), self.patch_grid(self.config))

    def tables_of(self, bottleneck: nn.Module) -> dict[str, Tensor]:
        """The tables of a tokenizer's bottleneck that this network reads, by the names in `taken`."""
        return {}

    @torch.no_grad()
    def take_bottleneck(self, bottleneck: nn.Module) -> None:
        """Copy what it reads of the bottleneck whose ids it predicts: once, before a training."""
        for name, table in self.tables_of(bottleneck).items():
            getattr(self, name).copy_(table)

    @torch.no_grad()
    def has_taken(self, bottleneck: nn.Module) -> bool:
        """Whether what it reads is of this bottleneck, up to the rounding of half precision."""
        tables = {name: table.float().cpu() for name, table in self.tables_of(bottleneck).items()}
        near = [
            (table - getattr(self, name).float().cpu()).abs().max() <= 0.02 * table.abs().max()
            for name, table in tables.items()
        ]
        return all(near)

    @staticmethod
    def patch_grid(config: Mapping[str, Any]) -> list[int]:
        """The grid of the patches that a network of this config reads codes in."""
        return [size // config.get("patch_size", 1) for size in config["grid"]]

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a condition that it reads; none where it is unconditional."""
        return fields_read(self.config)

    def select(self, condition: Condition | None) -> Condition | None:
        """Of a condition what this network reads; None where that is nothing."""
        return select(condition, self.reads)

    def null(self, condition: Condition) -> Condition:
        """The unconditional condition of the same batch: the null label, and no caption."""
        return null_of(condition, self.config.num_classes)

    def make_text_reader(self, width: int) -> TextReader | None:
        """What reads captions into blocks of this width, by the constructor's arguments; None where it reads none."""
        c, text = self.config, text_spec(self.config)
        return text and TextReader(text, width, c.text_reading, c.text_projection, c.text_null)

    @property
    def reads_across(self) -> bool:
        """Whether its blocks attend to captions outside of their own sequence."""
        return "text" in self.reads and self.config.text_reading == "cross_attention"

    def caption(self, condition: Condition | None, batch: int, device: torch.device) -> Caption | None:
        """The caption of every image by the module `text`, its null where none is given; None where that is None.

        Raises ValueError for captions of another shape than its own, and where there are any and it reads none.
        """
        if self.text is not None:
            return self.text(pick_layer(condition, self.config), batch, device)
        refuse_text(condition)
        return None

    def labels_and_scores(self, condition: Condition | None, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`labels`, and the score of every image, [B]: the network's own where none is given."""
        labels = self.labels(condition, batch, device)
        if condition is not None and condition.score is not None:
            return labels, condition.score
        return labels, torch.full((batch,), self.config.score, device=device)

    def set_empty_text(self, empty: Condition) -> None:
        """Take the features of the empty caption, those of one image, where they are the null of this network."""
        if "text" in self.reads and self.config.get("text_null") == "empty":
            self.text.null.set_empty(pick_layer(empty, self.config))

    def labels(self, condition: Condition | None, batch: int, device: torch.device) -> Tensor:
        """The label of every image, [B] int64: the null one where no condition is given.

        Raises ValueError when an unconditional network is given labels.
        """
        labels = None if condition is None else condition.labels
        if labels is None:
            return torch.full((batch,), self.config.num_classes, dtype=torch.int64, device=device)
        if not self.config.num_classes:
            raise ValueError("this network was built without classes (num_classes=0); call it without labels")
        return labels


def fits_word(word: str, root: str) -> bool:
    """Whether a word of a parameter's name is that of a root in `Network.parts`."""
    return word.isdigit() if root == "*" else word == root


class MaskedLatentNetwork(Network):
    """A network of tokens D channels each, the patches of a code, of which it sees those that are known.

    `states` says what it knows of every place, and a small `head` denoises the token of one place by its state alone
    (Li et al., arXiv:2406.11838). Objectives call `forward` in training, `states` and `denoise` in sampling.
    """

    role = "masked_latent"
    entry_points = ("states", "denoise")
    head: TokenDenoiser

    @abstractmethod
    def states(
        self, tokens: Tensor, known: Tensor, condition: Condition | None = None, dropout: Draws | None = None
    ) -> Tensor:
        """States of all places, [B, M, width], of tokens [B, M, D], seen at the places `known` [B, K] int64 alone.

        `dropout` gives the masks of dropout in training. Without a condition a network of classes answers for its null
        class. ValueError where M is not the grid's, and when an unconditional network is given labels.
        """

    def denoise(self, noisy: Tensor, time: Tensor, states: Tensor) -> Tensor:
        """Noisy tokens [B, R, D] at noise levels `time` [B, R] and the states of their places to [B, R, outputs * D].

        `time` is float32 in [0, 1], 1 is pure noise.
        """
        level = time.float() if self.config.time_direction == "noise" else 1 - time.float()
        return self.head(noisy, level * self.config.time_scale, states)

    def forward(
        self,
        tokens: Tensor,
        known: Tensor,
        asked: Tensor,
        noisy: Tensor,
        time: Tensor,
        condition: Condition | None = None,
        dropout: Draws | None = None,
    ) -> Tensor:
        """`denoise` of noisy tokens [B, R, D] of the places `asked` [B, R], any of them several times; see `states`."""
        states = self.states(tokens, known, condition, dropout)
        return self.denoise(noisy, time, take_places(states, asked))

    def check_tokens(self, tokens: Tensor) -> None:
        """ValueError where tokens [B, M, D] are not the patches of a code of its grid."""
        grid = self.patch_grid(self.config)
        if tokens.shape[1] != math.prod(grid):
            raise ValueError(f"{tokens.shape[1]} tokens do not fit the network, whose patches are on the grid {grid}")


def check_widths(arguments: Arguments, prefix: str = "") -> None:
    """ValueError where the width of a transformer, or of a part whose arguments have a prefix, does not divide."""
    width, heads = arguments[f"{prefix}width"], arguments[f"{prefix}heads"]
    if width % heads:
        raise ValueError(f"{prefix}width {width} is not divisible by {prefix}heads {heads}; give a multiple of {heads}")
    if int(width * arguments.feed_forward_ratio) < 1:
        ratio = arguments.feed_forward_ratio
        raise SettingError(
            "feed_forward_ratio", f" is {ratio:g}, of a {prefix}width of {width}; give {1 / width:g} or more"
        )


def check_ids(ids: Tensor, grid: Sequence[int], codebooks: int) -> None:
    """ValueError where ids [B, N, codebooks] are not those of a whole code of this grid."""
    tokens = math.prod(grid)
    if ids.shape[1:] != (tokens, codebooks):
        raise ValueError(
            f"ids {list(ids.shape)} do not fit the network's grid {list(grid)} of {codebooks} codebooks; they are"
            f" [B, {tokens}, {codebooks}]"
        )


def check_taps(taps: Sequence[int], depth: int) -> None:
    """ValueError where `taps` name a block that is not there."""
    for tap in taps:
        if not 1 <= tap <= depth:
            raise ValueError(f"there is no block {tap} to tap; the network has blocks 1 to {depth}")


def check_axes(kind: str, grid: Sequence[int]) -> None:
    """ValueError where a network for maps and sequences is to work on anything else."""
    if len(grid) not in (1, 2):
        raise ValueError(f"{kind} works on grids of one or two axes, not on {list(grid)}")
