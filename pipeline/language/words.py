"""The tokenizer of a text model: prompts to ids of one length, and its files beside the model's."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from torch import Tensor

FOLDER = "tokenizer"  # in that of the encoder
Side = Literal["left", "right"]


def read_words(folder: Path) -> Any:
    """The tokenizer in a folder, run by no code of its own; ValueError where there is none that can be read."""
    from transformers import AutoTokenizer

    try:
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder} holds no tokenizer that can be read ({why}); it needs a tokenizer.json") from None
    if words.pad_token is None:
        if words.eos_token is None:
            raise ValueError(f"the tokenizer in {folder} has no token for padding and none for an end; state one in it")
        words.pad_token = words.eos_token
    return words


def to_ids(
    words: Any, prompts: Sequence[str], tokens: int, side: Side | None, pad: int | None
) -> tuple[Tensor, Tensor]:
    """Ids [B, tokens] of prompts that are cut or padded at `side`, and where there are tokens, [B, tokens] bool.

    A prompt of no token has a padding in the place of one. `pad` is the id of paddings, None for the tokenizer's.
    """
    padding_side = side or words.padding_side
    coded = words(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokens,
        padding_side=padding_side,
        return_attention_mask=True,
        return_tensors="pt",
    )
    ids, mask = coded["input_ids"], coded["attention_mask"].bool()
    if pad is not None:
        ids = ids.masked_fill(~mask, pad)
    mask[~mask.any(1), 0 if padding_side == "right" else -1] = True
    return ids, mask


class WithWords(ModelMixin):
    """A model whose tokenizer lies in the folder `tokenizer` of its own; `words` is None until it is read."""

    words: Any = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any) -> "WithWords":
        model = super().from_pretrained(pretrained_model_name_or_path, **options)
        folder = Path(pretrained_model_name_or_path, options.get("subfolder") or "", FOLDER)
        read = model[0] if isinstance(model, tuple) else model  # with output_loading_info
        read.words = read_words(folder)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        super().save_pretrained(save_directory, **options)
        self.words.save_pretrained(Path(save_directory, FOLDER))


def pool(states: Tensor, mask: Tensor, way: Literal["mean", "first", "last"]) -> Tensor:
    """One vector [B, dim] of states [B, T, dim]: their mean over the mask, or that of the first or the last token."""
    if way == "mean":
        kept = mask[..., None].to(states.dtype)
        return (states.masked_fill(~mask[..., None], 0)).sum(1) / kept.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    if way == "first":
        chosen = torch.where(mask, places, mask.shape[1]).amin(1)
    else:
        chosen = torch.where(mask, places, -1).amax(1)
    return states[torch.arange(len(states), device=states.device), chosen]
