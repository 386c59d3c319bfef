"""What every kind in a slot promises, written once; tests/test_contracts.py runs it over all kinds.

A new file in a slot is checked by being there: its tiny example is derived from its constructor. Where an argument
without a default has no tiny value yet, `tiny` says what to add to TINY.
"""

import copy
import inspect
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, Node, build, check, find, kinds
from pipeline.draws import StepDraws
from pipeline.nn import lora
from pipeline.nn.bits import bits_of
from pipeline.nn.conditions import NO_TEXT, text_spec
from pipeline.recipes.files import CONFIGS, read
from pipeline.training.players import checkpoint_blocks

# Tiny values of sizes that recipes state, by the argument's name, for all slots.
SMALL: dict[str, Any] = {
    "width": 32,
    "conv_width": 8,
    "redundant": 3,
    "depth": 3,
    "heads": 2,
    "head_width": 32,
    "head_heads": 2,
    "blocks": 1,
    "groups": 4,
    "dim": 4,
    "vocab": 16,
    "levels": [4, 3],
    "tokens": 6,
    "z_channels": 8,
    "feed_forward_multiple": 1,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "proxy_vocab": 16,
    "proxy_dim": 8,
    "proxy_width": 8,
    "proxy_start": None,
    "pixel_start": None,
    "encoder_start": None,
    "decoder_start": None,
    "start": "random",
    "hidden": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "side": 4,
    "widths": [8] * 4,
    "spatial": [8],
    "tap_widths": [8],
    "depths": [1],
    "code_width": 16,
    "bits": 4,
    "rotary_axes": [4, 6, 6],
    "merge_after": [1],
    "split_after": [1],
    "sides": [1, 2],
    "buffer": 2,
    "score_width": 6,
    "first_tokens": 2,
    "shift": 2,
    "window": 2,
    "temporal_depth": 1,
    "image_levels": 2,
    "token_levels": 4,
    "semantic_dim": 4,
    "pixel_dim": 3,
    "semantic_outputs": 8,
    "semantic_width": 32,
    "semantic_depth": 2,
    "semantic_heads": 2,
    "pixel_size": 32,
}
# The same, and of arguments that no recipe of a part states.
TINY: dict[str, Any] = SMALL | {
    "head_depth": 1,
    "bits": 4,
    "codebooks": 2,
    "anneal_start": 1,
    "anneal_end": 2,
    "strength": 3,
    "scale": 0.5,
    "layers": 1,
    "scales": 2,
    "bottleneck": {"kind": "vector_quantize", "dim": 4, "vocab": 16},
    "first": {"kind": "vector_quantize", "dim": 4, "vocab": 16},
    "second": {"kind": "vector_quantize", "dim": 3, "vocab": 16},
    "semantic_encoder": {"kind": "stand_in", "norm": "own"},
}
SHARED = {"kind": "shared_index", "semantic_dim": 4, "pixel_dim": 3, "vocab": 16}
# What an earlier stage determines for a network; a variant may state others.
DERIVED = {
    "grid": [4, 4],
    "levels": [4] * 4,  # maps of 2x2
    "segments": [[4], [3, 4]],
    "dim": 3,
    "vocab": 16,
    "num_classes": 5,
    "outputs": 1,
    "codebooks": 1,
    "class_token": 0,
}
DERIVED |= NO_TEXT
TEXT = {"text_tokens": 4, "text_dim": 3, "text_layers": 2, "pooled_dim": 0}
POOLED = TEXT | {"pooled_dim": 5}
ACROSS = {"text_reading": "cross_attention"}
RAR = {
    "position": "learned",
    "start_token": True,
    "target_positions": True,
    "modulated": True,
    "norm": "layer",
    "query_key_norm": True,
    "feed_forward": "gelu",
    "bias": True,
}
OF_DATA = {"time_scale": 1.0, "time_direction": "data"}
DROPOUTS = {
    "token_dropout": 0.2,
    "residual_dropout": 0.2,
    "feed_forward_dropout": 0.2,
    "attention_dropout": 0.2,
}
# Further examples, of switches that no tiny example and no recipe has.
VARIANTS: dict[str, dict[str, Node]] = {
    "networks": {
        "next_scale": {"kind": "next_scale_transformer", "grid": [14], "levels": [1, 4, 9], "drop_path": 0.3},
        "next_scale_plain": {
            "kind": "next_scale_transformer",
            "grid": [13],
            "levels": [4, 9],
            "query_key_norm": False,
            "shared_modulation": True,
        },
        "next_scale_codebooks": {"kind": "next_scale_transformer", "grid": [5], "levels": [1, 4], "codebooks": 3},
        "next_scale_unconditional": {
            "kind": "next_scale_transformer",
            "grid": [14],
            "levels": [1, 4, 9],
            "num_classes": 0,
        },
        "segments": {"kind": "segment_transformer", "grid": [16], "prefix_rotary": "zero", "residual_dropout": 0.2},
        "segments_row": {"kind": "segment_transformer", "grid": [8], "segments": [[2], [6]], "token_dropout": 0.2},
        "segments_three": {
            "kind": "segment_transformer",
            "grid": [9],
            "segments": [[1], [2], [2, 3]],
            "codebooks": 2,
            "border": "next",
            "feed_forward_dropout": 0.2,
        },
        "segments_unconditional": {
            "kind": "segment_transformer",
            "grid": [8],
            "segments": [[2], [2, 3]],
            "num_classes": 0,
        },
        "parallel_levels": {
            "kind": "parallel_level_transformer",
            "grid": [16],
            "levels": [1, 1, 2, 4, 8],
            "token_dropout": 0.2,
            "residual_dropout": 0.2,
            "feed_forward_dropout": 0.2,
        },
        "parallel_levels_codebooks": {
            "kind": "parallel_level_transformer",
            "grid": [7],
            "levels": [1, 2, 4],
            "codebooks": 3,
        },
        "parallel_levels_unconditional": {
            "kind": "parallel_level_transformer",
            "grid": [9],
            "levels": [3, 3, 3],
            "num_classes": 0,
        },
        "bidirectional_deep": {"kind": "bidirectional_transformer", "body": "uvit", "depth": 5, "grid": [3, 4]},
        "bidirectional_codebooks": {"kind": "bidirectional_transformer", "codebooks": 3, "grid": [3, 4]},
        "bidirectional_unconditional": {"kind": "bidirectional_transformer", "body": "uvit", "num_classes": 0},
        "bidirectional_dropout": {"kind": "bidirectional_transformer", "dropout": 0.3, "attention_dropout": 0.2},
        "uvit_dropout": {"kind": "bidirectional_transformer", "body": "uvit", "dropout": 0.3, "attention_dropout": 0.2},
        "causal_llamagen": {
            "kind": "causal_transformer",
            "prefix_rotary": "zero",
            "feed_forward_multiple": 8,
            "grid": [3, 4],
            **DROPOUTS,
        },
        "causal_sequence": {"kind": "causal_transformer", "position": "rotary_sequence", "grid": [3, 4]},
        "causal_learned": {"kind": "causal_transformer", "position": "learned", "query_key_norm": True},
        "causal_rar": {"kind": "causal_transformer", "grid": [3, 4], **RAR, **DROPOUTS},
        "causal_modulated": {"kind": "causal_transformer", "modulated": True, "target_positions": True},
        "causal_one_axis": {"kind": "causal_transformer", "grid": [6]},
        "causal_codebooks": {"kind": "causal_transformer", "grid": [2, 3], "codebooks": 3},
        "causal_sub_tokens": {
            "kind": "causal_transformer",
            "grid": [2, 3],
            "codebooks": 3,
            "head_depth": 2,
            "prefix_rotary": "zero",
            **DROPOUTS,
        },
        "causal_sub_tokens_rar": {"kind": "causal_transformer", "grid": [2, 3], **RAR, "codebooks": 2, "head_depth": 1},
        "causal_unconditional": {"kind": "causal_transformer", "grid": [2, 3], "num_classes": 0},
        "causal_unconditional_rar": {
            "kind": "causal_transformer",
            "grid": [2, 3],
            **RAR,
            "num_classes": 0,
            "codebooks": 2,
        },
        "diffusion_dit": {"kind": "diffusion_transformer", "grid": [4, 6], "patch_size": 2, "outputs": 2},
        "diffusion_sit": {"kind": "diffusion_transformer", "patch_size": 2, **OF_DATA},
        "diffusion_rotary": {"kind": "diffusion_transformer", "position": "rotary"},
        "diffusion_learned": {"kind": "diffusion_transformer", "position": "learned", "norm": "rms"},
        "diffusion_one_axis": {
            "kind": "diffusion_transformer",
            "grid": [6],
            "position": "rotary_and_fixed",
            "feed_forward": "swiglu",
        },
        "diffusion_lightning": {
            "kind": "diffusion_transformer",
            "grid": [3, 4],
            **OF_DATA,
            "position": "rotary_and_fixed",
            "norm": "rms",
            "feed_forward": "swiglu",
            "query_key_norm": True,
        },
        "diffusion_layer_norms": {"kind": "diffusion_transformer", "query_key_norm": "layer"},
        "diffusion_class_token": {"kind": "diffusion_transformer", "class_token": 5},
        "diffusion_unconditional": {"kind": "diffusion_transformer", "num_classes": 0},
        "causal_bits": {"kind": "causal_bit_transformer", "vocab": 2, "codebooks": 5, "residual_dropout": 0.2},
        "causal_bits_of_ids": {"kind": "causal_bit_transformer", "vocab": 16, "grid": [6]},
        "causal_bits_unconditional": {"kind": "causal_bit_transformer", "vocab": 4, "num_classes": 0, "codebooks": 2},
        "causal_bits_text": {"kind": "causal_bit_transformer", "vocab": 2, "codebooks": 5, "num_classes": 0, **TEXT},
        "causal_bits_text_empty": {"kind": "causal_bit_transformer", "grid": [6], **TEXT, "text_null": "empty"},
        "bit_diffusion_text": {"kind": "bit_diffusion_transformer", "vocab": 2, "num_classes": 0, **TEXT},
        "bit_diffusion_text_empty": {"kind": "bit_diffusion_transformer", "grid": [6], **TEXT, "text_null": "empty"},
        "bit_diffusion": {"kind": "bit_diffusion_transformer", "vocab": 2, "codebooks": 5, "residual_dropout": 0.2},
        "bit_diffusion_of_ids": {"kind": "bit_diffusion_transformer", "vocab": 16, "grid": [6]},
        "bit_diffusion_unconditional": {"kind": "bit_diffusion_transformer", "vocab": 2, "num_classes": 0},
        "joint_masked_text": {"kind": "joint_masked_transformer", "num_classes": 0, **POOLED, "score_width": 6},
        "joint_masked_layer": {"kind": "joint_masked_transformer", **TEXT, "text_layer": 1, "text_null": "learned"},
        "joint_masked_codebooks": {"kind": "joint_masked_transformer", "codebooks": 3, "grid": [3, 4]},
        "joint_masked_unconditional": {"kind": "joint_masked_transformer", "num_classes": 0},
        "joint_latents_text": {"kind": "joint_masked_latent_transformer", **POOLED, "score_width": 5, "outputs": 2},
        "joint_latents_layer": {
            "kind": "joint_masked_latent_transformer",
            "num_classes": 0,
            **TEXT,
            "text_layer": 0,
            "patch_size": 2,
            **OF_DATA,
        },
        "joint_latents_classes": {"kind": "joint_masked_latent_transformer", "grid": [6], "score_width": 4},
        "masked_latent_patches": {"kind": "masked_latent_transformer", "patch_size": 2, "outputs": 2},
        "masked_latent_narrow": {"kind": "masked_latent_transformer", "decoder_width": 24, "decoder_depth": 1},
        "masked_latent_one_axis": {"kind": "masked_latent_transformer", "grid": [6], **OF_DATA},
        "masked_latent_unconditional": {"kind": "masked_latent_transformer", "num_classes": 0},
        "wide_head_patches": {"kind": "wide_head_transformer", "patch_size": 2},
        "wide_head_oblong": {"kind": "wide_head_transformer", "grid": [3, 4], "query_key_norm": True},
        "wide_head_one_axis": {"kind": "wide_head_transformer", "grid": [6]},
        "wide_head_unconditional": {"kind": "wide_head_transformer", "num_classes": 0},
        "wide_head_narrow": {"kind": "wide_head_transformer", "head_width": 24, "head_heads": 3},
        "wide_head_text": {"kind": "wide_head_transformer", "grid": [3, 4], **POOLED},
        "wide_head_text_across": {"kind": "wide_head_transformer", "num_classes": 0, **TEXT, **ACROSS},
        "diffusion_text": {"kind": "diffusion_transformer", "position": "rotary_and_fixed", "num_classes": 0, **TEXT},
        "diffusion_text_and_class": {"kind": "diffusion_transformer", "class_token": 5, **POOLED, "text_null": "empty"},
        "diffusion_text_across": {
            "kind": "diffusion_transformer",
            "num_classes": 0,
            **POOLED,
            **ACROSS,
            "text_projection": "mlp",
        },
        "diffusion_text_pooled": {"kind": "diffusion_transformer", **POOLED, "text_reading": "pooled"},
        "diffusion_text_mean": {"kind": "diffusion_transformer", "num_classes": 0, **TEXT, "text_reading": "pooled"},
        "causal_post_norm": {
            "kind": "causal_transformer",
            "norm": "layer",
            "post_norm": True,
            "bias": True,
            **DROPOUTS,
        },
        "causal_text": {"kind": "causal_transformer", "grid": [2, 3], "num_classes": 0, **TEXT, **DROPOUTS},
        "causal_text_zero": {
            "kind": "causal_transformer",
            "grid": [2, 3],
            "num_classes": 0,
            **TEXT,
            "prefix_rotary": "zero",
            "text_projection": "mlp",
        },
        "causal_text_and_class": {"kind": "causal_transformer", "grid": [6], **POOLED, "text_null": "empty"},
        "causal_text_rar": {"kind": "causal_transformer", "grid": [2, 3], **RAR, **DROPOUTS, "num_classes": 0, **TEXT},
        "causal_text_rar_across": {
            "kind": "causal_transformer",
            "grid": [2, 3],
            **RAR,
            "codebooks": 2,
            **POOLED,
            **ACROSS,
        },
        "causal_text_across": {"kind": "causal_transformer", "position": "learned", "num_classes": 0, **TEXT, **ACROSS},
        "causal_text_pooled": {"kind": "causal_transformer", "num_classes": 0, **TEXT, "text_reading": "pooled"},
        "bidirectional_text": {
            "kind": "bidirectional_transformer",
            "num_classes": 0,
            **TEXT,
            "dropout": 0.3,
            "attention_dropout": 0.2,
        },
        "bidirectional_text_and_class": {"kind": "bidirectional_transformer", "body": "uvit", **POOLED},
        "bidirectional_text_across": {"kind": "bidirectional_transformer", **TEXT, **ACROSS, "text_null": "empty"},
        "bidirectional_text_pooled": {
            "kind": "bidirectional_transformer",
            "body": "uvit",
            "num_classes": 0,
            **POOLED,
            "text_reading": "pooled",
        },
    },
    "tokenizers": {
        "tokenflow": {
            "kind": "tokenflow",
            "bottleneck": {"kind": "scale_by_scale", "sides": [1, 2, 4], "bottleneck": SHARED, "drop": 0.5},
            "multipliers": [1, 1],
            "attention": [1],
        },
        "tokenflow_map": {
            "kind": "tokenflow",
            "bottleneck": SHARED,
            "multipliers": [1, 1],
            "attention": [],
            "decoder_blocks": 2,
        },
        "restok": {"kind": "restok", "token_levels": 4, "image_levels": 2, "multipliers": [1, 1], "single": 2},
        "restok_published": {
            "kind": "restok",
            "token_levels": 4,
            "image_levels": 3,
            "multipliers": [1, 1],
            "interleaved": True,
            "feature_pass": True,
        },
    },
    "bottlenecks": {
        "vector_quantize_euclid": {"kind": "vector_quantize", "dim": 4, "vocab": 16, "unit_norm": False},
        "vector_quantize_ema": {"kind": "vector_quantize", "dim": 4, "vocab": 16, "learn": "ema", "restart": 0.1},
        "vector_quantize_entropy": {"kind": "vector_quantize", "dim": 4, "vocab": 16, "entropy_temperature": 0.1},
        "vector_quantize_rotation": {"kind": "vector_quantize", "dim": 4, "vocab": 16, "gradient": "rotation"},
        "online_clustered_unit": {"kind": "online_clustered", "dim": 4, "vocab": 16, "unit_norm": True},
        "vector_quantize_by_angle": {
            "kind": "vector_quantize",
            "dim": 4,
            "vocab": 16,
            "unit_norm": False,
            "by_angle": True,
        },
        "multi_scale_plain": {"kind": "multi_scale", "sides": [1, 3], "phis": 0},
        "multi_scale_product": {
            "kind": "multi_scale",
            "sides": [2, 3],
            "bottleneck": {"kind": "product", "codebooks": 2, "bottleneck": {"kind": "binary", "bits": 2}},
        },
        "two_segments_codebooks": {
            "kind": "two_segments",
            "first": {"kind": "product", "codebooks": 2, "bottleneck": {"kind": "binary", "bits": 3}},
            "second": {"kind": "residual", "codebooks": 2, "bottleneck": {"kind": "binary", "bits": 3}},
        },
        "binary_spherical": {"kind": "binary", "bits": 4, "spherical": True},
        "shared_index_euclid": SHARED | {"unit_norm": False, "semantic_weight": 0.5, "entropy_temperature": 0.1},
        "shared_index_ema": SHARED | {"learn": "ema", "start": "kmeans", "restart": 0.1, "pixel_weight": 3.0},
        "scale_by_scale_shared": {"kind": "scale_by_scale", "sides": [1, 3], "bottleneck": SHARED, "drop": 0.5},
    },
}
FRAGMENTS = {  # where recipes of parts name the kinds of a slot: folder of configs/, and the path inside a file
    "tokenizers": ("tokenizers", "tokenizer", "model"),
    "networks": ("networks", "generator", "network"),
}
CAPTIONS = {"text_tokens": 5, "text_dim": 6, "text_layers": 2}  # of a tokenizer that reads them
GIVEN = ("image_size", "grid", "num_classes", "outputs", "class_token", *CAPTIONS)  # not stated in a tiny node
SIZES = (8, 16, 32)  # pixels


def small(node: Node) -> Node:
    """A recipe's node with every size that it states made tiny; its switches stay."""
    sizes = {name: SMALL[name] for name in node if name in SMALL and not isinstance(node[name], dict)}
    if node.get("sides", [max(SIZES)])[-1] <= 4:
        sizes.pop("sides")  # a stand-in's map is no smaller
    if max(SIZES) % node.get("image_patch", 1):
        sizes["image_patch"] = min(SIZES)
    if node.get("model_type") == "clip_vision_model":
        sizes["image_size"] = max(SIZES)  # positions of another size are read past the hooks of their layer
    nested = {name: small(value) for name, value in node.items() if isinstance(value, dict)}
    return node | sizes | nested


def tiny(slot: str, kind: str) -> Node:
    """The smallest node of a kind, from its constructor: sizes from TINY, everything else by default."""
    node: Node = {"kind": kind}
    derived = DERIVED if slot == "networks" else ()
    for name, parameter in list(inspect.signature(find(slot, kind).__init__).parameters.items())[1:]:
        if name in GIVEN or name in derived:
            continue
        needed = parameter.default is inspect.Parameter.empty
        if name in TINY and (needed or isinstance(parameter.default, int) and parameter.default > 1):
            node[name] = TINY[name]
        elif needed:
            raise AssertionError(
                f"{slot}/{kind}: add a tiny value for its argument {name!r} to TINY in tests/contracts.py,"
                " or an example of the kind to SPECIAL"
            )
    return node


@cache
def fragments(slot: str) -> dict[str, Node]:
    """The distinct tiny nodes of the recipes of parts, each under the name of the first recipe that gives it."""
    folder, *path = FRAGMENTS[slot]
    nodes: dict[str, Node] = {}
    for file in sorted((CONFIGS / folder).glob("*.yaml")):
        node = read(file)
        for key in path:
            node = node[key]
        if (node := small(node)) not in nodes.values():
            nodes[file.stem] = node
    return nodes


@cache
def examples(slot: str) -> dict[str, Node]:
    """Tiny nodes of every kind in a slot by name: VARIANTS, else of recipes where they have the kind, and `tiny`."""
    nodes = dict(fragments(slot)) if slot in FRAGMENTS else {}
    varied = {node["kind"] for node in VARIANTS.get(slot, {}).values()}  # what recipes have of these is among them
    nodes = {name: node for name, node in nodes.items() if node["kind"] not in varied}
    if slot == "tokenizers":  # the published sizes add no switch to those of the digits, but for kinds of their own
        digits = {node["kind"] for name, node in nodes.items() if name.startswith("digits")}
        nodes = {n: node for n, node in nodes.items() if n.startswith("digits") or node["kind"] not in digits}
    covered = {node["kind"] for node in nodes.values()}
    nodes |= {kind: tiny(slot, kind) for kind in kinds(slot) if kind not in covered and f"{slot}/{kind}" not in SPECIAL}
    variants = {name: tiny(slot, node["kind"]) | node for name, node in VARIANTS.get(slot, {}).items()}
    return nodes | variants


def kind_of_every_example_is_covered(slot: str) -> None:
    """Every kind of the slot has an example, or is in SPECIAL with the test that stands for it."""
    covered = {node["kind"] for node in examples(slot).values()}
    missing = [kind for kind in kinds(slot) if kind not in covered and f"{slot}/{kind}" not in SPECIAL]
    assert not missing, f"{slot}: no example of {', '.join(missing)}"


# Kinds that a node alone does not build, and where they are tested.
SPECIAL = {
    "critics/frozen_features": "tests/critics/test_critics.py: it judges by a network that it is given",
    "text_encoders/pretrained_text": "tests/text_encoders/test_pretrained_text.py: it needs a published model",
    "text_encoders/minilm": "tests/text_encoders/test_minilm.py: its weights are in a package that may be missing",
}


CHOOSING = {"clustered_features"}  # whose decoders choose ids, of which rounding makes others where two are as likely

IDLE = {
    "decoder.mask_token",
    "decoder.dropped_token",
    "decoder.feature_token",
    "texture.token",
}  # read in training where tokens, or images, are drawn that they replace


def draws(batch: int = 3, rows: slice | None = None) -> StepDraws:
    return StepDraws(0, 0, rows or slice(0, batch), batch)


@torch.no_grad()
def randomised(module: nn.Module, std: float = 0.15) -> nn.Module:
    """With every weight random, so that no gate hides a branch."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


# Networks

ROUGHNESS = {
    "denoiser": 1e-3,
    "causal": 2e-3,
    "masked": 3e-3,
    "bit_denoiser": 1e-3,
    "masked_latent": 3e-3,
    "levels": 3e-3,
}  # mean square error in bfloat16, of the answer's own


def network_of(node: Node) -> nn.Module:
    stated = {name: value for name, value in node.items() if name not in DERIVED}
    derived = DERIVED | {name: value for name, value in node.items() if name in DERIVED}
    network = randomised(build("networks", stated, **derived)).eval()
    if "text" in network.reads:
        network.set_empty_text(captions_of(network, [2], seed=9))
    return network


def captions_of(network: nn.Module, lengths: list[int], seed: int = 4) -> Condition:
    """Captions of so many tokens as a network reads them, padded on the right with what nothing may depend on."""
    spec, generator = text_spec(network.config), torch.Generator().manual_seed(seed)
    text = torch.randn(len(lengths), spec.tokens, spec.layers * spec.dim, generator=generator)
    pooled = torch.randn(len(lengths), spec.pooled, generator=generator) if spec.pooled else None
    return Condition(None, text, torch.arange(spec.tokens) < torch.tensor(lengths)[:, None], pooled)


def condition_of(network: nn.Module, batch: int = 3) -> Condition | None:
    """Labels, and captions of different lengths of which the last image has none; None of an unconditional network."""
    classes = network.config.num_classes
    labels = torch.arange(batch) % classes if classes else None
    if "text" in network.reads:
        return replace(captions_of(network, [3, *[4] * (batch - 2), 0]), labels=labels)
    return Condition(labels=labels) if classes else None


def request_of(network: nn.Module, batch: int = 3) -> dict[str, Any]:
    """What `forward` of a network is asked with, by its role; some ids of every image are masked, and some are not."""
    config, generator = network.config, torch.Generator().manual_seed(1)
    condition = condition_of(network, batch)
    if network.role == "denoiser":
        z = torch.randn(batch, *network.state_shape, generator=generator)
        return {"hidden_states": z, "time": torch.linspace(0.1, 0.9, batch), "condition": condition}
    if network.role == "masked_latent":
        return tokens_of(network, batch, generator) | {"condition": condition}
    tokens = LatentSpec(tuple(config.grid), dim=1).tokens
    shape = (batch, tokens, config.codebooks) if config.codebooks > 1 else (batch, tokens)
    ids = torch.randint(config.vocab, shape, generator=generator)
    if network.role == "masked":
        masked = (torch.arange(tokens) + torch.arange(batch)[:, None]) % 3 > 0
        return {"ids": ids, "masked": masked, "condition": condition}
    time = {"time": torch.linspace(0.1, 0.9, batch)} if network.role == "bit_denoiser" else {}
    return {"ids": ids, **time, "condition": condition}


def tokens_of(network: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Tokens of which a third are known, and noisy ones of four places, one of them twice."""
    grid, patch = network.patch_grid(network.config), network.config.get("patch_size", 1)
    count, dim = math.prod(grid), patch ** len(grid) * network.config.dim
    order = torch.rand(batch, count, generator=generator).argsort(dim=1)
    return {
        "tokens": torch.randn(batch, count, dim, generator=generator),
        "known": order[:, : count // 3],
        "asked": order[:, [-1, -2, -3, -1]],
        "noisy": torch.randn(batch, 4, dim, generator=generator),
        "time": torch.rand(batch, 4, generator=generator),
    }


def row_of(request: dict[str, Any], i: int) -> dict[str, Any]:
    return {name: None if value is None else value[i : i + 1] for name, value in request.items()}


def dropout_of(network: nn.Module, rows: slice | None = None) -> dict[str, StepDraws]:
    """Draws of dropout, where `forward` takes them."""
    return {"dropout": draws(rows=rows)} if "dropout" in inspect.signature(network.forward).parameters else {}


def check_one_by_one(network: nn.Module) -> None:
    """An answer has its shape, and a batch is its images one by one, with dropout or without."""
    request, config = request_of(network), network.config
    tokens = LatentSpec(tuple(config.grid), dim=1).tokens
    if network.role == "denoiser":
        shape = (3, network.state_shape[0], config.get("outputs", 1) * config.dim)
    elif network.role == "bit_denoiser":
        shape = (3, tokens, config.codebooks * bits_of(config.vocab))
    elif network.role == "masked_latent":
        shape = (*request["noisy"].shape[:2], config.outputs * request["noisy"].shape[2])
    else:
        shape = (3, tokens, config.codebooks, config.vocab)
    for dropping in {False, bool(dropout_of(network))}:
        together = network(**request, **(dropout_of(network) if dropping else {}))
        assert together.shape == shape
        for i in range(3):
            dropout = dropout_of(network, slice(i, i + 1)) if dropping else {}
            alone = network(**row_of(request, i), **dropout)
            scale = max(1.0, together.abs().max().item())
            torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5 * scale, rtol=1e-4)


def check_every_weight_takes_part(network: nn.Module) -> None:
    network(**request_of(network)).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle, idle


def check_checkpointing(network: nn.Module) -> None:
    """Gradient checkpointing changes no gradient, with dropout and with taps where there are such."""
    request, gradients = request_of(network) | dropout_of(network), []
    taps = {"taps": (1,)} if network.role == "denoiser" else {}
    for enable in (network.disable_gradient_checkpointing, network.enable_gradient_checkpointing):
        enable()
        network.zero_grad()
        answer = network(**request, **taps)
        parts = [answer[0], *answer[1]] if taps else [answer]
        sum(part.square().sum() for part in parts).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert network.is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@torch.no_grad()
def check_half_precision(network: nn.Module) -> None:
    """In bfloat16, whole or by autocast, the answer is finite and near that in float32, with dropout or without."""
    request = request_of(network)
    for dropout in ({}, dropout_of(network)):
        exact = network.float()(**request, **dropout)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(**request, **dropout)
        network.bfloat16()
        halved = {n: v.bfloat16() if n in ("hidden_states", "tokens", "noisy") else v for n, v in request.items()}
        whole = network(**halved, **dropout)
        assert whole.dtype == torch.bfloat16
        for rough in (mixed, whole):
            assert rough.isfinite().all()
            assert (rough.float() - exact).square().mean() < ROUGHNESS[network.role] * exact.square().mean()


@torch.no_grad()
def check_null(network: nn.Module) -> None:
    """No condition is the null one; labels and captions matter, and a network that does not read them refuses them."""
    request = request_of(network)
    without = network(**request | {"condition": None})
    caption = Condition(text=torch.zeros(3, 2, 2), text_mask=torch.ones(3, 2, dtype=torch.bool))
    for name, other in (("labels", Condition(labels=torch.zeros(3, dtype=torch.int64))), ("text", caption)):
        if name in network.reads:
            continue
        with pytest.raises(ValueError, match="was built without"):
            network(**request | {"condition": other})
    if not network.reads:
        return
    null = network.null(request["condition"])
    torch.testing.assert_close(network(**request | {"condition": null}), without, atol=0, rtol=0)
    assert not torch.allclose(network(**request), without, atol=1e-4)
    if "text" in network.reads:
        check_read_captions(network, request)


def check_read_captions(network: nn.Module, request: dict[str, Any]) -> None:
    """Each place with a token matters, and no other; where the padding is does not; features must be of the encoder."""
    answer, condition = network(**request), request["condition"]
    ask = lambda **changes: network(**request | {"condition": replace(condition, **changes)})  # noqa: E731
    for place in range(condition.text.shape[1]):
        text = condition.text.clone()
        text[:, place] = torch.nan if place == 3 else 5.0
        text[1] = condition.text[1]  # which has no padding
        changed = ask(text=text)
        assert torch.equal(changed[1:], answer[1:])
        by_mask = network.config.get("text_reading") == "pooled" and network.config.pooled_dim
        assert torch.equal(changed[0], answer[0]) == (place == 3 or bool(by_mask))
    moved = ask(text=condition.text.roll(1, dims=1), text_mask=condition.text_mask.roll(1, dims=1))
    torch.testing.assert_close(moved[0], answer[0], atol=1e-5, rtol=1e-4)
    if condition.pooled is not None:
        assert not torch.allclose(ask(pooled=condition.pooled + 1)[:2], answer[:2], atol=1e-4)
        with pytest.raises(ValueError, match="pooled vectors"):
            ask(pooled=None)
    for changes in ({"text": condition.text[..., :1]}, {"text_mask": None}):
        with pytest.raises(ValueError, match="give features of the text encoder"):
            ask(**changes)


def check_network_parts(network: nn.Module) -> None:
    """Other classes, another grid and other codes change the parts that the network names, and no other weight.

    A network of these takes the weights of the rest; on a larger grid of the same patches it still sees every place.
    """
    node, config = dict(Arguments.from_config(network)), network.config
    patch = config.get("patch_size", 1)
    changes = {"labels": {"num_classes": 7}, "positions": {"grid": [2 * size for size in config.grid]}}
    if "levels" in config:  # square maps in a row
        levels = [*config.levels, 36]
        changes["positions"] = {"grid": [sum(levels)], "levels": levels}
    if "segments" in config:  # a row of them
        segments = [[2 * size for size in segment] for segment in config.segments]
        changes["positions"] = {"grid": [sum(map(math.prod, segments))], "segments": segments}
    changes |= {"codes": {name: 2 * config[name] for name in ("dim", "vocab") if name in config}}
    if "text" in network.reads:
        changes["text"] = {name: config[name] + 1 for name in TEXT if config.get(name)}
    for part, changed in changes.items():
        if part == "labels" and not any(network.is_of(name, (part,)) for name in network.state_dict()):
            continue  # it has no table
        other = type(network)(**node | changed)
        shapes = {name: weight.shape for name, weight in network.state_dict().items()}
        differing = {name for name, weight in other.state_dict().items() if weight.shape != shapes[name]}
        differing -= set(network.taken)  # they are the tokenizer's
        assert all(network.is_of(name, (part,)) for name in differing), (part, differing)
        assert differing or part == "positions"
        new, resampled = ((), (part,)) if part == "positions" else ((part,), ())
        other.begin_from(network, new, resampled)
        for name, weight in other.state_dict().items():
            same = name in network.taken or torch.equal(weight, network.state_dict()[name])
            assert network.is_of(name, (part,)) or same, name
    assert network.patch_grid(config) == [size // patch for size in config.grid]


def check_adapters(network: nn.Module) -> None:
    """An adapter begins as the network, changes what it names, and is the same when it is merged."""
    request = request_of(network)
    before, counts = network(**request), []
    for layers in ("attention", "feed_forward", "all"):
        adapted = copy.deepcopy(network)
        lora.adapt(adapted, adapted.adapted_layers(layers), rank=2, alpha=3.0)
        torch.testing.assert_close(adapted(**request), before, atol=0, rtol=0)
        with torch.no_grad():
            for _, layer in lora.low_rank_layers(adapted):
                layer.lora_up.normal_(std=0.3)
        apart = adapted(**request)
        assert not torch.allclose(apart, before, atol=1e-3)
        counts.append(len(lora.adapters(adapted)))
        lora.merge(adapted)
        assert adapted.state_dict().keys() == network.state_dict().keys()
        torch.testing.assert_close(adapted(**request), apart, atol=1e-4, rtol=1e-3)
    assert counts[0] + counts[1] <= counts[2]


def settings_of(component: Any) -> dict[str, Any]:
    """The config without what diffusers adds to it."""
    return {name: value for name, value in component.config.items() if not name.startswith("_")}


def check_config(component: Any) -> None:
    """The config is what JSON can hold, and constructs a component of the same config again."""
    settings = json.loads(json.dumps(settings_of(component)))
    assert json.loads(json.dumps(settings_of(type(component)(**settings)))) == settings


# Tokenizers


def derived_of(node: Node, size: int) -> dict[str, Any]:
    """What earlier stages determine for a tokenizer: the size of images, and the shape of captions where it has any."""
    return {"image_size": size} | {n: v for n, v in CAPTIONS.items() if n in parameters_of("tokenizers", node["kind"])}


def parameters_of(slot: str, kind: str) -> list[str]:
    return list(inspect.signature(find(slot, kind).__init__).parameters)


def spec_of(node: Node, size: int) -> LatentSpec:
    derived = derived_of(node, size)
    cls, arguments = check("tokenizers", node, tuple(derived))
    return cls.geometry(arguments | derived)


def size_for(node: Node) -> int:
    """The smallest size at which a tokenizer gives four tokens or more."""
    for size in SIZES:
        try:
            if spec_of(node, size).tokens >= 4:
                return size
        except ValueError:
            continue
    raise AssertionError(f"{node} fits none of {SIZES}")


def images_of(size: int, batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def captions_for(tokenizer: nn.Module, batch: int = 3, seed: int = 7) -> Condition | None:
    """Captions of its images for a tokenizer that reads them, another one a seed; else None."""
    if not tokenizer.can.captions:
        return None
    places, channels = tokenizer.config.text_tokens, tokenizer.config.text_dim * tokenizer.config.text_layers
    text = torch.randn(batch, places, channels, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(places) < 1 + torch.arange(batch)[:, None] % places
    return Condition(text=text * mask[..., None], text_mask=mask)


def tokenizer_of(node: Node) -> tuple[nn.Module, Tensor, Condition | None]:
    """A tokenizer in evaluation, images that fit it, and their captions where it reads such."""
    size = size_for(node)
    tokenizer = build("tokenizers", node, **derived_of(node, size)).eval()
    return tokenizer, images_of(size), captions_for(tokenizer)


@torch.no_grad()
def check_geometry(node: Node) -> None:
    """Codes and images have the shapes that are known without building; z is what ids look up."""
    tokenizer, images, captions = tokenizer_of(node)
    spec = spec_of(node, images.shape[-1])
    assert tokenizer.spec == spec
    code = tokenizer.encode(images, captions)
    if code.z is not None:
        assert code.z.shape == (3, *spec.shape)
    if spec.vocab:
        assert code.ids.shape == (3, spec.tokens, *([spec.codebooks] if spec.codebooks > 1 else []))
        assert code.ids.min() >= 0 and code.ids.max() < spec.vocab
    decoded = tokenizer.decode(code, captions)
    assert decoded.shape == images.shape and decoded.isfinite().all()
    alone = Code(z=code.z, ids=None) if code.z is not None else code
    torch.testing.assert_close(tokenizer.decode(alone, captions), decoded)


@torch.no_grad()
def check_images_one_by_one(node: Node) -> None:
    """What the bottleneck reads and what is decoded of an image do not depend on the others of its batch."""
    tokenizer, images, captions = tokenizer_of(node)
    h, code = tokenizer.features(images, captions), tokenizer.encode(images, captions)
    decoded = tokenizer.decode(code, captions)
    tokenizer.enable_slicing()
    torch.testing.assert_close(tokenizer.decode(code, captions), decoded, atol=1e-4, rtol=1e-3)
    for i in range(3):
        row = slice(i, i + 1)
        caption = None if captions is None else captions[row]
        torch.testing.assert_close(tokenizer.features(images[row], caption), h[row], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(tokenizer.decode(code[row], caption), decoded[row], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def check_captions(node: Node) -> None:
    """A caption changes what the halves give that read captions, who refuse to do without; no other half sees it."""
    tokenizer, images, captions = tokenizer_of(node)
    randomised(tokenizer)
    reads, others = tokenizer.can.captions, captions_for(tokenizer, seed=8)
    code = tokenizer.encode(images, captions)
    works = {
        "encoder": lambda given: tokenizer.features(images, given),
        "decoder": lambda given: tokenizer.decode(code, given),
    }
    for half, work in works.items():
        if half not in reads:
            assert torch.equal(work(None), work(captions or Condition(text=torch.ones(3, 2, 2)))), half
            continue
        assert not torch.allclose(work(captions), work(others), atol=1e-4), half
        narrow = Condition(text=captions.text[..., :-1])
        for given in (None, Condition(labels=torch.arange(3)), narrow):
            with pytest.raises(ValueError, match="reads captions") as refusal:
                work(given)
            assert "\n" not in str(refusal.value)
    kind = type(tokenizer)
    if reads:
        with pytest.raises(ValueError, match="section text"):
            kind.geometry(Arguments.from_config(tokenizer) | {"text_tokens": 0})


def check_given_draws(node: Node) -> None:
    """A training pass is a function of its draws, and its terms are those that are known without building."""
    tokenizer, images, captions = tokenizer_of(node)
    names = type(tokenizer).terms(Arguments.from_config(tokenizer))
    passes = [copy.deepcopy(tokenizer).train()(images, captions, draws=draws()) for _ in range(2)]
    assert set(passes[0].terms) == set(names)
    assert torch.equal(passes[0].images, passes[1].images) and passes[0].images.isfinite().all()
    assert all(torch.equal(value, passes[1].terms[name]) for name, value in passes[0].terms.items())
    before = copy.deepcopy(tokenizer.state_dict())
    with torch.no_grad():
        tokenizer(images, captions, draws=draws())
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items()), "in evaluation"


def total(tokenizer: nn.Module, images: Tensor, given: StepDraws | None = None) -> Tensor:
    """A loss of all that a training pass gives: images, terms, and features for losses that read them."""
    rebuilt = tokenizer(images, captions_for(tokenizer, len(images)), draws=given or draws())
    features = [tensor for value in rebuilt.features.values() for tensor in tensors_of(value)]
    trained = [tensor.square().mean() for tensor in features if tensor.requires_grad]
    return (rebuilt.images * images).mean() + rebuilt.images.square().mean() + sum([*rebuilt.terms.values(), *trained])


def check_tokenizer_checkpointing(node: Node) -> None:
    """Gradient checkpointing changes no gradient."""
    tokenizer, images, _ = tokenizer_of(node)
    for parameter in tokenizer.trainable("all"):
        parameter.requires_grad_(True)  # given weights have none until a phase trains them
    gradients = []
    for prepare in (lambda model: None, checkpoint_blocks):
        model = copy.deepcopy(tokenizer).train()
        prepare(model)
        total(model, images).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def check_parts(node: Node) -> None:
    """Each part of a tokenizer gets gradients, no other parameter does, and what is fixed is in no part."""
    tokenizer, images, _ = tokenizer_of(node)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)  # so that no gate is shut
    fixed = {id(p) for p in tokenizer.frozen_parameters()}
    can = tokenizer.can
    parts = [part for part in can.parts if part not in (*can.branches, *can.parts_without_pixels)]
    for part in parts:
        chosen = {id(p) for p in tokenizer.trainable(part)}
        assert not chosen & fixed, part
        if not chosen:  # an encoder that is frozen whole
            continue
        model = tokenizer.train()
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in chosen)
        total(model, images).backward()
        with_gradient = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        idle = [name for name, p in model.named_parameters() if id(p) in chosen - with_gradient and name not in IDLE]
        assert not idle, (part, idle)
        assert with_gradient <= chosen, part


@torch.no_grad()
def check_tokenizer_half_precision(node: Node) -> None:
    """In bfloat16 codes and images are finite, and the image of one code is near that in float32."""
    tokenizer, images, captions = tokenizer_of(node)
    code = tokenizer.encode(images, captions)
    exact = tokenizer.decode(code, captions)
    tokenizer.bfloat16()
    rough = tokenizer.decode(Code(z=None if code.z is None else code.z.bfloat16(), ids=code.ids), captions)
    assert rough.isfinite().all() and tokenizer(images.bfloat16(), captions).images.isfinite().all()
    if node["kind"] in CHOOSING:
        return
    assert (rough.float() - exact).square().mean() < 1e-2 * exact.square().mean() + 1e-6


# Bottlenecks


def bottleneck_of(node: Node) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    bottleneck = build("bottlenecks", node).eval()
    tokens = bottleneck.tokens or 5
    return bottleneck, torch.randn(3, tokens, bottleneck.inputs, generator=torch.Generator().manual_seed(4))


def spec_of_bottleneck(bottleneck: nn.Module) -> LatentSpec:
    """Of a code of the features of `bottleneck_of`."""
    return bottleneck.spec((5,) if bottleneck.tokens is None else (math.isqrt(bottleneck.tokens),) * 2)


def check_bottleneck(node: Node) -> None:
    """Terms as known without building; without draws a function of each token's image alone; ids look up z."""
    bottleneck, h = bottleneck_of(node)
    code, terms = bottleneck(h)
    assert set(terms) == set(type(bottleneck).terms(check("bottlenecks", node)[1]))
    assert code.z.shape == (3, *spec_of_bottleneck(bottleneck).shape) and bool(bottleneck.vocab) == (
        code.ids is not None
    )
    for i in range(3):
        alone, _ = bottleneck(h[i : i + 1])
        torch.testing.assert_close(alone.z, code.z[i : i + 1])
    if bottleneck.vocab:
        torch.testing.assert_close(bottleneck.lookup(code.ids), code.z, atol=1e-5, rtol=1e-4)
        assert code.ids.max() < bottleneck.vocab
    passes = [copy.deepcopy(bottleneck).train()(h, draws()) for _ in range(2)]
    assert torch.equal(passes[0][0].z, passes[1][0].z)
    read = bottleneck.decoder_input(code.z)
    assert read.shape == h.shape[:2] + (bottleneck.dim,)
    assert torch.equal(bottleneck.decoder_input(code.z, h), read)
    assert all(torch.equal(value, passes[1][1][name]) for name, value in passes[0][1].items())


def check_bottleneck_gradient(node: Node) -> None:
    """The code passes a gradient to the features, and every term is finite."""
    bottleneck, h = bottleneck_of(node)
    h.requires_grad_()
    code, terms = bottleneck.train()(h, draws())
    assert all(value.isfinite() and value.ndim == 0 for value in terms.values())
    gradient = torch.autograd.grad((code.z * torch.linspace(-1, 1, code.z.numel()).view_as(code.z)).sum(), h)[0]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@torch.no_grad()
def check_bottleneck_half_precision(node: Node) -> None:
    bottleneck, h = bottleneck_of(node)
    code, terms = bottleneck(h.bfloat16())
    assert code.z.dtype == torch.bfloat16 and code.z.isfinite().all()
    assert all(value.isfinite() for value in terms.values())


# Text encoders

PROMPTS = ["red heart", "", "a caption of the length that no encoder of these sizes takes whole " * 8, "grüße 🙂", "a"]


def check_text_encoder(node: Node) -> None:
    """Features are as their geometry says, of each prompt alone; longer prompts are cut, and the empty one has some."""
    encoder = build("text_encoders", node).eval()
    spec = type(encoder).geometry(check("text_encoders", node)[1])
    assert spec == encoder.spec
    together = encoder.encode(PROMPTS)
    assert together.labels is None and together.text.shape == (len(PROMPTS), spec.tokens, spec.layers * spec.dim)
    assert (together.pooled is None) == (spec.pooled == 0)
    assert together.pooled is None or together.pooled.shape == (len(PROMPTS), spec.pooled)
    assert together.text_mask.dtype == torch.bool and together.text_mask.any(1).all()
    assert not together.text[~together.text_mask].any() and together.text.dtype == torch.float32
    for i, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt])
        assert torch.equal(alone.text_mask, together.text_mask[i : i + 1])
        torch.testing.assert_close(alone.text, together.text[i : i + 1], atol=2e-5, rtol=1e-4)
        if spec.pooled:
            torch.testing.assert_close(alone.pooled, together.pooled[i : i + 1], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(together.text[0], together.text[4], atol=1e-4)
    halved = encoder.bfloat16().encode(PROMPTS)
    assert halved.text.dtype == torch.float32 and halved.text.isfinite().all()


# Critics and perturbations


def check_critic(node: Node) -> None:
    """One by one in evaluation, a gradient at the images and at every weight, and finite in bfloat16."""
    critic = build("critics", node).eval()
    smallest = type(critic).smallest(Arguments.from_config(critic))
    images = images_of(max(32, smallest)).requires_grad_()
    views = as_views(critic(images))
    for i in range(3):
        for view, alone in zip(views, as_views(critic(images[i : i + 1]))):
            torch.testing.assert_close(alone, view[i : i + 1], atol=1e-4, rtol=1e-3)
    sum(view.square().sum() for view in views).backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())
    with torch.no_grad():
        rough = as_views(critic.bfloat16()(images.detach().bfloat16()))
    assert all(view.isfinite().all() for view in rough)


def as_views(logits: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else list(logits)


def check_perturbation(node: Node) -> None:
    """The decoder's z keeps the code's shape and is a function of draws and of each image alone, however split."""
    perturbation = build("perturbations", node)
    discrete = node["kind"] == "codebook_neighbours"
    neck = build("bottlenecks", TINY["bottleneck"] if discrete else {"kind": "identity", "dim": 4}).eval()
    h = torch.randn(4, 6, neck.inputs, generator=torch.Generator().manual_seed(6))
    code, _ = neck(h)
    whole = perturbation(neck, h, code, draws(4), 0)
    assert whole.isfinite().all() and len(whole) == 4 and whole.shape[2] == 4
    assert torch.equal(perturbation(neck, h, code, draws(4), 0), whole)
    for rows in (slice(0, 1), slice(1, 4)):
        split = perturbation(neck, h[rows], code[rows], draws(4, rows), 0)
        torch.testing.assert_close(split, whole[rows])


def saved_answers(models: dict[str, tuple[nn.Module, tuple]], answer: Callable[..., dict], folder) -> None:
    """Every model, saved and loaded in one fresh process, answers as before."""
    calls = {name: (model.forward, *inputs) for name, (model, inputs) in models.items()}
    answers = answer(folder, calls)
    with torch.no_grad():
        for name, (forward, *inputs) in calls.items():
            for ours, again in zip(tensors_of(forward(*inputs)), tensors_of(answers[name]), strict=True):
                assert torch.equal(ours, again), name


def tensors_of(answer: Any) -> list[Tensor]:
    """The tensors of what a `forward` returns: logits, several of them, or what a tokenizer rebuilt."""
    if isinstance(answer, Tensor):
        return [answer]
    if answer is None:
        return []
    if hasattr(answer, "images"):
        return [answer.images, *(value for value in (answer.code.z, answer.code.ids) if value is not None)]
    return list(answer)
