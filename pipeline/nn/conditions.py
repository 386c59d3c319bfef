"""Which fields of a condition a model reads, and the condition that stands where nothing is asked for."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.code import Condition, TextSpec
from pipeline.validation import SettingError

# Arguments of a model's constructor, 0 where it does not read the field.
SIZES = {"labels": "num_classes", "text": "text_tokens", "pooled": "pooled_dim", "score": "score_width"}
NO_TEXT = {"text_tokens": 0, "text_dim": 0, "text_layers": 1, "pooled_dim": 0}  # arguments of a model without captions


def text_arguments(text: TextSpec | None) -> dict[str, int]:
    """The arguments of a model's constructor that follow from the captions' features; None: it reads none."""
    if text is None:
        return dict(NO_TEXT)
    return {"text_tokens": text.tokens, "text_dim": text.dim, "text_layers": text.layers, "pooled_dim": text.pooled}


def text_spec(arguments: Mapping[str, Any]) -> TextSpec | None:
    """The inverse of `text_arguments`, for the arguments of a model that may have none of them."""
    values = [arguments.get(name, absent) for name, absent in NO_TEXT.items()]
    return TextSpec(*values) if values[0] else None


def fields_read(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a condition that a model with these constructor arguments reads."""
    names = [name for name, size in SIZES.items() if arguments.get(size, 0)]
    return (*names, "text_mask") if "text" in names else tuple(names)


def select(condition: Condition | None, names: Collection[str]) -> Condition | None:
    """The condition with the fields `names` alone; None where none of them is given."""
    if condition is None:
        return None
    kept = {name: value for name in names if (value := getattr(condition, name)) is not None}
    return Condition(**kept) if kept else None


def spec_read(arguments: Mapping[str, Any]) -> TextSpec | None:
    """The geometry of what a model reads of captions: the layer `text_layer` alone, where its arguments state one."""
    spec = text_spec(arguments)
    return spec if spec is None or arguments.get("text_layer") is None else replace(spec, layers=1)


def pick_layer(condition: Condition | None, arguments: Mapping[str, Any]) -> Condition | None:
    """The condition with the features of the layer `text_layer` alone, where these arguments of a model state one.

    Features of another width than the text encoder's stay as they are.
    """
    number, spec = arguments.get("text_layer"), text_spec(arguments)
    if number is None or spec is None or condition is None or condition.text is None:
        return condition
    if condition.text.shape[-1] != spec.layers * spec.dim:
        return condition
    return replace(condition, text=condition.text[..., number * spec.dim : (number + 1) * spec.dim])


def check_layer(arguments: Mapping[str, Any]) -> None:
    """ValueError where `text_layer` is none of the text encoder's stated layers."""
    number, spec = arguments.get("text_layer"), text_spec(arguments)
    if number is not None and spec is not None and number >= spec.layers:
        raise SettingError("text_layer", f" is {number}, and the text encoder states {spec.layers} layers, from 0 on")


def refuse_text(condition: Condition | None) -> None:
    """ValueError where a model that reads no captions is given any."""
    if condition is not None and condition.text is not None:
        raise ValueError("this network was built without captions (text_tokens=0); call it without text")


def null_of(condition: Condition, null_label: int) -> Condition:
    """The null condition of the same batch: the null label, and no place of the caption that holds a token.

    A model puts its own null in place of a caption without tokens, so `text` and `pooled` stay as they are, and with
    them the score.
    """
    labels, mask = condition.labels, condition.text_mask
    labels = None if labels is None else torch.full_like(labels, null_label)
    return replace(condition, labels=labels, text_mask=None if mask is None else torch.zeros_like(mask))


def where(chosen: Tensor, new: Condition, old: Condition) -> Condition:
    """`new` for images of `chosen` [B] bool, `old` for the others; both have the same fields."""
    values = {}
    for name, value in vars(old).items():
        other = getattr(new, name)
        if value is not None and other is not value:
            value = torch.where(chosen.view(-1, *[1] * (value.ndim - 1)), other, value)
        values[name] = value
    return Condition(**values)


def filled(negative: Condition, null: Condition) -> Condition:
    """A condition to lead away from, with the fields of `null` where it states none; a caption is stated as a whole."""
    labels = null.labels if negative.labels is None else negative.labels
    caption = null if negative.text is None else negative
    return Condition(labels, caption.text, caption.text_mask, caption.pooled, null.score)
