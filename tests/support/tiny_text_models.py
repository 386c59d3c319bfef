"""Tiny text models of many families, as transformers saves them, with tokenizers of a few words."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "red",
    "blue",
    "green",
    "heart",
    "circle",
    "square",
    "a",
    "the",
    "of",
    "caption",
    "house",
]
SIZES = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {  # the class that is saved, and its sizes
    "clip_text_model": ("CLIPTextModelWithProjection", LAYERS | {"projection_dim": 12, "max_position_embeddings": 20}),
    "t5": ("T5EncoderModel", {"d_model": 16, "num_layers": 3, "num_heads": 2, "d_kv": 8, "d_ff": 32}),
    "bert": ("BertModel", LAYERS | {"max_position_embeddings": 20}),
    "llama": ("LlamaModel", LAYERS | {"num_key_value_heads": 1, "max_position_embeddings": 64}),
    "gemma2": ("Gemma2Model", LAYERS | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}),
    "gpt2": ("GPT2Model", {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 20}),
}


def save_words(folder: Path, side: str = "right", ends: bool = True) -> None:
    """A tokenizer of whole words; with `ends` a start and an end are put around a text."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=side,
    )
    words.save_pretrained(folder)


def save_model(folder: Path, kind: str, side: str = "right", ends: bool = True) -> torch.nn.Module:
    """A model of this kind with random weights, saved with its tokenizer; `clip` is a whole one, pictures included."""
    import transformers

    torch.manual_seed(0)
    if kind == "clip":
        vision = LAYERS | {"image_size": 8, "patch_size": 4, "projection_dim": 12}
        text = SIZES | CONFIGS["clip_text_model"][1]
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        model = transformers.CLIPModel(config)
    else:
        cls, sizes = CONFIGS[kind]
        config = transformers.CONFIG_MAPPING[kind](**SIZES, **sizes)
        model = getattr(transformers, cls)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(folder)
    save_words(folder, side, ends)
    return model
