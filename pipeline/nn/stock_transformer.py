"""A diffusion transformer with DiT's switches as diffusers' own DiTTransformer2DModel."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.nn.stock_model import StockModel

SAME = {  # what the stock class cannot do otherwise
    "position": "fixed",
    "norm": "layer",
    "feed_forward": "gelu",
    "feed_forward_ratio": 4.0,
    "query_key_norm": False,
    "time_scale": 1000.0,
    "time_direction": "noise",
    "class_token": 0,
    "position_grid": None,
    "text_tokens": 0,
}
CONDITIONS = "a class-conditional diffusion_transformer on a square grid with " + ", ".join(
    f"{name}={value}" for name, value in SAME.items()
)
NOTE = """The stock class spaces the frequencies of its time embedding a little wider than DiT does (127 steps where
DiT has 128), and no setting of it says so. With this after loading it gives the same numbers as the network here:

    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0

It takes codes as maps [B, C, H, W] and timesteps 1000 u."""


def check_stock_transformer(config: Any) -> None:
    """ValueError with one line unless the stock class can compute a network of this config."""
    for setting, value in SAME.items():
        if config[setting] != value:
            raise ValueError(f"DiTTransformer2DModel has no {setting}={config[setting]}; it is {CONDITIONS}")
    if not config.num_classes or len(config.grid) != 2 or config.grid[0] != config.grid[1]:
        raise ValueError(f"DiTTransformer2DModel needs classes and a square grid; it is {CONDITIONS}")


@torch.no_grad()
def stock_transformer(config: Any, weights: Mapping[str, Tensor]) -> StockModel:
    """A diffusion_transformer of this config with these weights, the same function up to the note in `NOTE`."""
    from diffusers import DiTTransformer2DModel  # which imports all of transformers, and a recipe needs none of it

    check_stock_transformer(config)
    c = config
    stock = DiTTransformer2DModel(
        num_attention_heads=c.heads,
        attention_head_dim=c.width // c.heads,
        in_channels=c.dim,
        out_channels=c.outputs * c.dim,
        num_layers=c.depth,
        sample_size=c.grid[0],
        patch_size=c.patch_size,
        num_embeds_ada_norm=c.num_classes,
        norm_eps=1e-6,
    )
    stock.load_state_dict(_renamed(weights, c.depth, c.patch_size, c.dim))
    return StockModel(stock.eval(), NOTE)


def _renamed(state: Mapping[str, Tensor], depth: int, patch: int, dim: int) -> dict[str, Tensor]:
    """Our weights under the stock names; every block has a time and a label embedding of its own there."""
    kernel = state["patch_embedding.weight"].unflatten(1, (patch, patch, dim)).permute(0, 3, 1, 2)
    named = {
        "pos_embed.proj.weight": kernel.contiguous(),
        "pos_embed.proj.bias": state["patch_embedding.bias"],
    }
    pairs = [("proj_out_1", "head.modulation"), ("proj_out_2", "head.linear")]
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        for kind in ("weight", "bias"):
            parts = state[f"{ours}.attention.qkv.{kind}"].chunk(3)
            named |= {f"{theirs}.attn1.to_{name}.{kind}": part.clone() for name, part in zip("qkv", parts)}
        pairs += [
            (f"{theirs}.norm1.linear", f"{ours}.modulation"),
            (f"{theirs}.norm1.emb.timestep_embedder.linear_1", "time_embedding.up"),
            (f"{theirs}.norm1.emb.timestep_embedder.linear_2", "time_embedding.down"),
            (f"{theirs}.attn1.to_out.0", f"{ours}.attention.proj"),
            (f"{theirs}.ff.net.0.proj", f"{ours}.feed_forward.up"),
            (f"{theirs}.ff.net.2", f"{ours}.feed_forward.down"),
        ]
        named[f"{theirs}.norm1.emb.class_embedder.embedding_table.weight"] = state["label_embedding.weight"]
    return named | {f"{a}.{kind}": state[f"{b}.{kind}"] for a, b in pairs for kind in ("weight", "bias")}
