"""A diffusion transformer with DiT's switches as diffusers' own DiTTransformer2DModel."""

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from pipeline.checks.publication import check_stock_network
from pipeline.networks.base import Network

NOTE = """The stock class spaces the frequencies of its time embedding a little wider than DiT does (127 steps where
DiT has 128), and no setting of it says so. With this after loading it gives the same numbers as the network here:

    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0

It takes codes as maps [B, C, H, W] and timesteps 1000 u."""


@torch.no_grad()
def stock_transformer(network: Network) -> DiTTransformer2DModel:
    """The same function, up to the note in `NOTE`; ValueError with one line where the stock class has no such shape."""
    check_stock_network(network)
    c = network.config
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
    stock.load_state_dict(_renamed(network.state_dict(), c.depth, c.patch_size, c.dim))
    return stock.eval()


def _renamed(state: dict[str, Tensor], depth: int, patch: int, dim: int) -> dict[str, Tensor]:
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
