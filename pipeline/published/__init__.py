"""Checkpoints of other projects, converted into our folders: one file per format."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, get_type_hints

from pipeline.components import conform
from pipeline.program import command_line
from pipeline.recipes.files import parse_settings
from pipeline.validation import suggestion

# What an importer can be given by KEY=VALUE, where the weights cannot tell it.
OPTIONS = {
    "single": "tokens that are made one by one, before the levels that double",
    "heads": "attention heads; needed where the width is not a published one",
    "decoder_heads": "attention heads of the decoder; needed where its width is not a published one",
    "condition_drop": "class dropout of its training; with 0 the label table has no row for the dropped label",
    "tokens": "tokens per image",
    "vocab": "ids of the codebook",
    "score": "how good an image is said to look where nobody says it, about 0 to 10",
    "patch_size": "tokens of a side of a patch",
    "unit_norm": "whether codes and codebook rows have length one (true or false)",
    "stats": "file of the published mean and std (or variance) of the latents",
    "scale": "what codes are multiplied by for a generator, 0.18215 for Stable Diffusion's",
    "start": "folder or hub id of the frozen encoder",
    "encoder_heads": "attention heads of the frozen encoder; needed where its width is not a published one",
    "encoder_grid": "patches of a side that the frozen encoder reads of an image",
    "shift": "places by which the causal decoder is read early",
    "encoder_input_size": "pixels of a side at which the frozen encoder reads an image",
    "colours": "mean and std of colours in [0, 1], [[three numbers],[three numbers]]; ImageNet's by default",
    "head_depth": "how many of the last blocks belong to the wide head",
    "dropout": "probability of dropout in the branch while it is trained further",
    "drop": "probability that the branch of an image is left out while it is trained further",
    "matching": "whether the branch has the frozen features' moments (channels) or its own (none)",
    "decoder": "file of the decoder's weights, where these are apart",
    "token_drop": "least and largest share of tokens that are left out while it is trained further",
    "drop_path": "probability that an image skips a branch of the last block while it is trained further",
    "taps": "layers of the frozen encoder that are read; 0 is what its first block reads, -1 the last",
    "image_size": "pixels of a side, where no weight tells",
    "activation": "of the code's maps in the decoder",
    "text_tokens": "places of a caption",
    "axes": "channels of a head for the axes of rotary positions",
    "merge_after": "blocks of the encoder after which the image's map is halved",
    "split_after": "blocks of the decoder after which the image's map is doubled",
    "sides": "sides of the maps that an image becomes, coarse to fine",
    "phi_share": "share of the convolution in phi, which smooths the maps of the scales",
    "tokenizer": "folder of its imported tokenizer",
    "proxy_start": "folder of the imported maskgit_vqgan whose codes a first stage predicts and whose decoder it takes",
    "norm_epsilon": "what its norms add to the variance",
    "gradient": "of quantisation while it is trained further: straight_through or rotation",
    "pooling": "what queries begin as: means over parts of the map (levels), or of the whole (mean)",
    "by_angle": "whether the nearest code is that of the least angle (true or false)",
    "unit_latents": "whether what is compared with the codebook's rows has length one (true or false)",
    "interleaved": "whether the encoder's last layers read a part of the channels of all tokens (true or false)",
    "clips": "whether to keep the layers that only clips have (true or false)",
    "frames": "frames of a clip, 1 for images",
    "prior_heads": "attention heads of the prior",
    "temperature": "of the quantiser's softmax of cosines while it is trained further",
    "time": "at which end its time is 1: noise (RAE) or data (RecTok)",
}


def formats() -> dict[str, ModuleType]:
    """Every format by name: the modules of this package that have a `convert`."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "convert")}


def find_format(name: str) -> ModuleType:
    """The module of a format; ValueError with the nearest name for an unknown one."""
    known = formats()
    if name not in known:
        raise ValueError(f"import: there is no format {name!r}{suggestion(name, list(known))}")
    return known[name]


def catalogue() -> str:
    """Every format with what it reads and its KEY=VALUE options, for the command import."""
    blocks = []
    for name, module in formats().items():
        rows = [f"{name:<14}{module.WHAT}"]
        for option, parameter in options_of(module.convert).items():
            default = "" if parameter.default is None else parameter.default
            value = f"{option}={str(default).lower() if isinstance(default, bool) else default}"
            rows.append(f"    {value:<21} {OPTIONS[option]}")
        blocks.append("\n".join(rows))
    return "\n".join([*blocks, "", command_line("import FORMAT FILE OUT [KEY=VALUE ...]")])


def options_of(convert: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of `convert` that KEY=VALUE can set: all but the first, the state."""
    return dict(list(inspect.signature(convert).parameters.items())[1:])


def converted(name: str, state: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The components ("tokenizer"; "network", "objective") of a state, under KEY=VALUE options.

    Raises ValueError for an unknown format or option, a value of a wrong type, and a state that is not of the format.
    """
    convert = find_format(name).convert
    return convert(state, **parse_options(name, convert, overrides))


def parse_options(name: str, convert: Callable[..., Any], overrides: list[str]) -> dict[str, Any]:
    """KEY=VALUE options as arguments of `convert`; ValueError for one that this format does not have."""
    hints, known = get_type_hints(convert), list(options_of(convert))
    values = parse_settings(overrides)
    for option in values:
        if option not in known:
            raise ValueError(f"import {name}: there is no option {option!r}{suggestion(option, known)}")
    return {option: conform(value, hints[option], f"import {name}: {option}") for option, value in values.items()}
