"""LaVIT's tokenizer and its decoder of features, which are published apart, through the import of their states."""

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTModel

from golden_kinds import Case, bare, grid
from pipeline.code import Code
from pipeline.tokenizers.lavit import Lavit

MATCHES = "LaVIT/models/"
BEGIN, END, FIRST = 32000, 32001, 32002  # of an image in the language model's ids, and its first code


class Given(torch.nn.Module):
    """Features that are given in place of a frozen network's."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features

    def maps(self, images: Tensor) -> list[Tensor]:
        return [self.features]


def outputs(case: Case) -> dict[str, Tensor]:
    return decoded(case) if "codes" in case.inputs else tokenized(case)


def imported(case: Case, width: int, state: dict[str, Tensor], **heads: int) -> Lavit:
    """The tokenizer on a frozen network of `width`, of which nothing is read."""
    side, patch = (case.meta["constructor"][name] for name in ("img_size", "patch_size"))
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    with tempfile.TemporaryDirectory() as folder:
        ViTModel(ViTConfig(hidden_size=width, patch_size=patch, image_size=side, **sizes)).save_pretrained(folder)
        options = {"start": folder, "image_size": side, **heads}
        return bare(case.imported("lavit", case.state | state, **options)["tokenizer"])


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Layers by name, whose weights and biases are zero, for the half that a case lacks."""
    weights = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}


def block(prefix: str, own: str, across: str, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the layers of a block, whose attentions are named `own` and `across`."""
    square = (width, width)
    shapes = {f"norm{i}": (width,) for i in range(3)} | {"mlp.fc1": square, "mlp.fc2": square}
    shapes |= {f"{own}.qkv": (3 * width, width), f"{own}.proj": square}
    shapes |= {f"{across}.{part}": square for part in ("query", "key", "value", "proj")}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def decoder_of(width: int, dim: int, places: int) -> dict[str, Tensor]:
    """A state of the decoder."""
    shapes = {"in_proj": (8, dim), "norm": (8,), "decode_task_layer.0": (8, 8), "decode_task_layer.2": (width, 8)}
    layers = zeros(shapes | {"unet_proj": (8, width)} | block("blocks.0", "self_attn", "cross_attn", 8))
    return layers | {name: torch.zeros(1, places, 8) for name in ("pos_embed", "query_embed")}


def encoder_of(width: int, dim: int) -> dict[str, Tensor]:
    """A state of selector, merger and codebook."""
    square, half = (width, width), width // 2
    shapes = {
        **{"causal_encoder.ln_vision": (width,), "causal_encoder.norm": (width,)},
        **{"encode_task_layer.0": square, "encode_task_layer.2": (dim, width)},
        **{"token_predictor.in_conv.0": (width,), "token_predictor.in_conv.1": square},
        **{"token_predictor.out_conv.0": (half, width), "token_predictor.out_conv.2": (half // 2, half)},
        "token_predictor.out_conv.4": (2, half // 2),
    }
    shapes |= block("causal_encoder.blocks.0", "token_causal_attn", "token_cross_attn", width)
    return zeros(shapes) | {"quantize.embedding.weight": torch.zeros(2, dim)}


def tokenized(case: Case) -> dict[str, Tensor]:
    stated, features = case.meta["constructor"], case.inputs["features"][:, 1:]  # without the class token
    state = decoder_of(stated["width"], stated["code_dim"], features.shape[1])
    tokenizer = imported(case, stated["width"], state, heads=stated["heads"], decoder_heads=2)
    side = stated["img_size"] // stated["patch_size"]
    tokenizer.encoder = Given(grid(features, side, side))
    tokens = tokenizer.foundation(torch.zeros(len(features), 3, *tokenizer.image_shape[1:]))
    uniform = (-(-case.inputs["gumbel"].double()).exp()).exp()
    decisions = tokenizer.decide(tokens, uniform)
    kept = decisions.detach() > 0.5
    merged = tokenizer.merger(tokens, decisions)
    last = tokenizer.selector.layers[-1]
    slope = torch.autograd.grad((merged * case.inputs["probe"]).sum(), [last.weight, last.bias])
    with torch.no_grad():
        rows, filled = tokenizer.latents(tokens, decisions)
        code = tokenizer.with_end(tokenizer.neck(rows)[0], filled)
        language = F.linear(merged, case.state["vit_proj.weight"], case.state["vit_proj.bias"])  # which is not ours
        return {
            "selector_log_probabilities": tokenizer.selector(tokens),
            "kept": kept.long(),
            "kept_counts": kept.sum(dim=1),
            "merged": merged,
            "merged_all_kept": tokenizer.merger(tokens, torch.ones_like(decisions)),
            "selector_grad": slope[0],
            "selector_grad_bias": slope[1],
            "to_quantiser": tokenizer.to_code(merged)[kept],
            "quantised": tokenizer.decoder_input(Code(ids=code.ids))[filled],
            "token_numbers": filled.sum(dim=1),
            "llm_ids": torch.cat([image_ids(row[row < tokenizer.spec.codes]) for row in code.ids]),
            "llm_features": language[kept],
        }


def image_ids(ids: Tensor) -> Tensor:
    """An image's codes as the language model has them, between two marks."""
    return F.pad(F.pad(ids + FIRST, (1, 0), value=BEGIN), (0, 1), value=END)


@torch.no_grad()
def decoded(case: Case) -> dict[str, Tensor]:
    stated, numbers = case.meta["constructor"], case.inputs["token_numbers"]
    width = len(case.state["decode_task_layer.2.bias"])
    state = encoder_of(width, stated["in_chans"])
    tokenizer = imported(case, width, state, heads=2, decoder_heads=stated["num_heads"])
    filled = torch.arange(tokenizer.spec.tokens) < numbers[:, None]
    z = torch.zeros(*filled.shape, stated["in_chans"]).masked_scatter(filled[..., None], case.inputs["codes"])
    features = tokenizer.rebuild(z)
    return {"features": features, "context": tokenizer.context(features)}
