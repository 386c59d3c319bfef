"""Checkpoints of REPA, REPA-E and DiT^DH: the published formulas on their keys give what the converted parts give."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_published_autoencoders import checkpoint
from torch import Tensor

from pipeline import LatentPipeline
from pipeline.code import Condition
from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.networks.wide_head_transformer import WideHeadTransformer
from pipeline.nn.class_token import join_token, split_token
from pipeline.nn.embeddings import fixed_positions
from pipeline.published import ditdh, formats, lightningdit, reg, repa, repa_e, vavae
from pipeline.published.checkpoint import read

VAE = {"multipliers": [1, 2], "blocks": 1, "bottleneck": {"kind": "gaussian", "dim": 4}}


def random(*shape: int) -> Tensor:
    return 0.2 * torch.randn(*shape)


def linear(name: str, to: int, of: int) -> dict[str, Tensor]:
    return {f"{name}.weight": random(to, of), f"{name}.bias": random(to)}


def repa_state(width: int = 16, depth: int = 2, dim: int = 4, tokens: int = 4, classes: int = 3) -> dict[str, Tensor]:
    """A small SiT with one projector, patches of two by two."""
    state = {"pos_embed": fixed_positions([math.isqrt(tokens)] * 2, width)[None]}
    state |= {"x_embedder.proj.weight": random(width, dim, 2, 2), "x_embedder.proj.bias": random(width)}
    state |= linear("t_embedder.mlp.0", width, 256) | linear("t_embedder.mlp.2", width, width)
    state |= {"y_embedder.embedding_table.weight": random(classes + 1, width)}
    for i in range(depth):
        block = f"blocks.{i}"
        state |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        state |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
        state |= linear(f"{block}.adaLN_modulation.1", 6 * width, width)
    state |= linear("final_layer.adaLN_modulation.1", 2 * width, width) | linear("final_layer.linear", 4 * dim, width)
    return state | linear("projectors.0.0", 8, width) | linear("projectors.0.2", 8, 8) | linear("projectors.0.4", 8, 8)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def apply(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def reg_state(token: int = 6, width: int = 16, **sizes: int) -> dict[str, Tensor]:
    """The same with a class token, which has a row of zeros among the positions."""
    state = repa_state(width, **sizes)
    state["pos_embed"] = F.pad(state["pos_embed"], (0, 0, 1, 0))
    state |= linear("cls_projectors2", width, token) | linear("final_layer.linear_cls", token, width)
    return state | {"wg_norm.weight": random(width), "wg_norm.bias": random(width)}


def repa_forward(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, heads: int) -> Tensor:
    """The published forward pass on a map x [B, C, H, W], written out."""
    return forward(state, x, t, y, heads)[0]


def forward(
    state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, heads: int, token: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """That of a map and, in REG, of a class token [B, D] before its patches."""
    h = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=2)
    rows = h.shape[-1]
    h = h.flatten(2).mT
    if token is not None:
        entry = apply(state, "cls_projectors2", token)
        entry = F.layer_norm(entry, entry.shape[1:], state["wg_norm.weight"], state["wg_norm.bias"], eps=1e-6)
        h = torch.cat([entry[:, None], h], dim=1)
    h = h + state["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    c = apply(state, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=-1))
    c = apply(state, "t_embedder.mlp.2", F.silu(c)) + state["y_embedder.embedding_table.weight"][y]
    for i in range(2):
        block = f"blocks.{i}"
        s1, k1, g1, s2, k2, g2 = apply(state, f"{block}.adaLN_modulation.1", F.silu(c))[:, None].chunk(6, dim=-1)
        qkv = apply(state, f"{block}.attn.qkv", norm(h) * (1 + k1) + s1)
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + g1 * apply(state, f"{block}.attn.proj", mixed)
        up = F.gelu(apply(state, f"{block}.mlp.fc1", norm(h) * (1 + k2) + s2), approximate="tanh")
        h = h + g2 * apply(state, f"{block}.mlp.fc2", up)
    shift, scale = apply(state, "final_layer.adaLN_modulation.1", F.silu(c))[:, None].chunk(2, dim=-1)
    h, made = norm(h) * (1 + scale) + shift, None
    if token is not None:
        h, made = h[:, 1:], apply(state, "final_layer.linear_cls", h[:, 0])
    h = apply(state, "final_layer.linear", h)
    h = h.unflatten(1, (rows, rows)).unflatten(-1, (2, 2, -1))  # [B, rows, columns, 2, 2, C]
    return h.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3), made


@torch.no_grad()
def test_repa_is_its_own_forward_pass():
    state, x, t, y = repa_state(), torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    parts = repa.convert(state, heads=2)
    ours = parts["network"](x.flatten(2).mT, t, Condition(labels=y)).mT.unflatten(2, (4, 4))
    torch.testing.assert_close(ours, repa_forward(state, x, t, y, heads=2), atol=1e-4, rtol=1e-4)
    assert parts["objective"].config.prediction == "velocity" and parts["objective"].config.path == "linear"


@torch.no_grad()
def test_reg_is_its_own_forward_pass_with_the_token_below_the_code():
    state, x, t, y = reg_state(), torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    token = torch.randn(2, 6)
    parts = reg.convert(state, heads=2)
    given = join_token(x.flatten(2).mT, token)
    z, predicted = split_token(parts["network"](given, t, Condition(labels=y)), 6)
    there, of_the_token = forward(state, x, t, y, heads=2, token=token)
    torch.testing.assert_close(z.mT.unflatten(2, (4, 4)), there, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(predicted, of_the_token, atol=1e-4, rtol=1e-4)
    assert parts["objective"].class_token == 6


def test_what_reg_does_not_have_is_named():
    with pytest.raises(ValueError, match="final_layer.linear_cls.weight"):
        reg.convert(repa_state(), heads=2)
    state = reg_state()
    with pytest.raises(ValueError, match="wg_norm.bias"):
        reg.convert({name: value for name, value in state.items() if name != "wg_norm.bias"}, heads=2)
    with pytest.raises(ValueError, match="first row of pos_embed"):
        reg.convert(state | {"pos_embed": state["pos_embed"] + 1}, heads=2)


def test_what_repa_does_not_have_is_named():
    with pytest.raises(ValueError, match="unexpected.*cls_token"):
        repa.convert(repa_state() | {"cls_token": torch.zeros(1)}, heads=2)
    with pytest.raises(ValueError, match="missing.*key_norm"):  # a layer norm of queries in one block alone
        normed = {"blocks.0.attn.q_norm.weight": torch.ones(8), "blocks.0.attn.q_norm.bias": torch.zeros(8)}
        repa.convert(repa_state() | normed)


def joint_file() -> dict:
    statistics = {
        "bn.running_mean": random(4),
        "bn.running_var": torch.rand(4) + 0.5,
        "bn.num_batches_tracked": torch.tensor(7),
    }
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}
    _, vae = checkpoint(**VAE)
    parts = {"model": repa_state(), "ema": repa_state() | statistics, "vae": vae}
    return parts | {"discriminator": {"main.0.weight": random(1)}, "optimizer": optimizer, "steps": 400_000}


@torch.no_grad()
def test_repa_e_gives_a_whole_pipeline_normalised_by_running_statistics(tmp_path):
    file = joint_file()
    torch.save(file, tmp_path / "file.pt")
    import_checkpoint(["repa_e", str(tmp_path / "file.pt"), str(tmp_path / "out"), "heads=2"])
    from pipeline.networks.diffusion_transformer import DiffusionTransformer
    from pipeline.objectives.flow_matching import FlowMatching
    from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

    tokenizer = ConvAutoencoder.from_pretrained(tmp_path / "out")
    network = DiffusionTransformer.from_pretrained(tmp_path / "out" / "network")
    averaged = file["ema"]
    torch.testing.assert_close(tokenizer.mean, averaged["bn.running_mean"])
    torch.testing.assert_close(1 / tokenizer.std, averaged["bn.running_var"].rsqrt())
    assert torch.equal(network.blocks[0].attention.proj.bias, averaged["blocks.0.attn.proj.bias"])
    objective = FlowMatching.from_pretrained(tmp_path / "out" / "objective")
    assert LatentPipeline(tokenizer, network, objective).num_classes == 3


def test_repa_e_refuses_what_is_not_its_own(tmp_path):
    file = {name: part for name, part in joint_file().items() if name in repa_e.PARTS}
    with pytest.raises(ValueError, match="unexpected part .*teacher"):
        repa_e.convert(file | {"teacher": {"a": torch.zeros(1)}}, heads=2)
    with pytest.raises(ValueError, match="try import repa"):
        repa_e.convert({"ema": repa_state()}, heads=2)
    with pytest.raises(ValueError, match="bn.running_var"):
        repa_e.convert(file | {"ema": repa_state()}, heads=2)
    with pytest.raises(ValueError, match="unexpected.*encoder.extra"):
        repa_e.convert(file | {"vae": file["vae"] | {"encoder.extra": torch.zeros(1)}}, heads=2)
    repa.convert(file["ema"], heads=2)  # the SiT alone, as any


@pytest.mark.parametrize("names", [("mean", "std"), ("latents_bias", "latents_scale")])
def test_latent_statistics_come_from_a_file_of_their_own(tmp_path, names):
    _, state = checkpoint(**VAE)
    mean, std = random(1, 4, 1, 1), torch.rand(1, 4, 1, 1) + 0.5
    torch.save({names[0]: mean, names[1]: std if names[1] == "std" else 1 / std}, tmp_path / "stats.pt")
    tokenizer = vavae.convert(state, stats=str(tmp_path / "stats.pt"))["tokenizer"]
    torch.testing.assert_close(tokenizer.mean, mean.flatten())
    torch.testing.assert_close(tokenizer.std, std.flatten())
    torch.save({"mean": torch.zeros(5), "std": torch.ones(5)}, tmp_path / "stats.pt")
    with pytest.raises(ValueError, match="5 channels, the codes have 4"):
        vavae.convert(state, stats=str(tmp_path / "stats.pt"))


def test_lightningdits_file_is_its_averaged_model(tmp_path):
    """Of model, ema, opt and config, as released; its keys are tested against golden values elsewhere."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}
    file = {
        "model": {"a": torch.zeros(1)},
        "ema": {"a": torch.ones(1)},
        "opt": optimizer,
        "config": {"model": {"a": 1}},
    }
    torch.save(file, tmp_path / "file.pt")
    assert read(tmp_path / "file.pt") == {"a": torch.ones(1)}
    with pytest.raises(ValueError, match="not a LightningDiT checkpoint"):
        lightningdit.convert(read(tmp_path / "file.pt"))


TRUNK, HEAD, DIM, ROWS = (16, 2), (24, 3), 5, 3  # widths and heads


def ditdh_state() -> dict[str, Tensor]:
    (width, heads), (head_width, head_heads) = TRUNK, HEAD
    state = {"pos_embed": fixed_positions([ROWS] * 2, width)[None]}
    for name, channels in (("s_embedder", width), ("x_embedder", head_width)):
        state |= {f"{name}.proj.weight": random(channels, DIM, 1, 1), f"{name}.proj.bias": random(channels)}
    for name, size in (("enc", width // heads), ("dec", head_width // head_heads)):
        angles = rope_angles(size)
        state |= {f"{name}_feat_rope.freqs_cos": angles.cos(), f"{name}_feat_rope.freqs_sin": angles.sin()}
    state |= {"t_embedder.W": torch.randn(256)} | linear("s_projector", head_width, width)
    state |= linear("t_embedder.mlp.0", width, 512) | linear("t_embedder.mlp.2", width, width)
    state |= {"y_embedder.embedding_table.weight": random(4, width)}
    for i, size in enumerate([width, width, head_width]):
        block, hidden = f"blocks.{i}", int(2 / 3 * 4 * size)
        state |= {f"{block}.norm1.weight": 1 + random(size), f"{block}.norm2.weight": 1 + random(size)}
        state |= linear(f"{block}.attn.qkv", 3 * size, size) | linear(f"{block}.attn.proj", size, size)
        state |= linear(f"{block}.mlp.w12", 2 * hidden, size) | linear(f"{block}.mlp.w3", size, hidden)
        state |= linear(f"{block}.adaLN_modulation.1", 6 * size, size)
    state |= {"final_layer.norm_final.weight": 1 + random(head_width)}
    state |= linear("final_layer.adaLN_modulation.1", 2 * head_width, head_width)
    return state | linear("final_layer.linear", DIM, head_width)


def rope_angles(size: int) -> Tensor:
    """[N, size]: half of the channels turn with the row, half with the column, two by two."""
    each = size // 2
    turns = torch.arange(ROWS)[:, None] * 10000.0 ** (-torch.arange(0, each, 2) / each)
    turns = turns.repeat_interleave(2, dim=-1)
    return torch.cat([turns[:, None].expand(-1, ROWS, -1), turns[None].expand(ROWS, -1, -1)], dim=-1).flatten(0, 1)


def ditdh_block(state: dict[str, Tensor], i: int, x: Tensor, c: Tensor, heads: int) -> Tensor:
    def turned(q: Tensor) -> Tensor:
        angles = rope_angles(q.shape[-1])
        pairs = q.unflatten(-1, (-1, 2))
        other = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        return q * angles.cos() + other * angles.sin()

    block = f"blocks.{i}"
    scales = [state[f"{block}.norm{n}.weight"] for n in (1, 2)]
    s1, k1, g1, s2, k2, g2 = apply(state, f"{block}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=-1)
    qkv = apply(state, f"{block}.attn.qkv", F.rms_norm(x, x.shape[-1:], scales[0], 1e-6) * (1 + k1) + s1)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2)
    x = x + g1 * apply(state, f"{block}.attn.proj", mixed)
    up = apply(state, f"{block}.mlp.w12", F.rms_norm(x, x.shape[-1:], scales[1], 1e-6) * (1 + k2) + s2)
    a, b = up.chunk(2, dim=-1)
    return x + g2 * apply(state, f"{block}.mlp.w3", F.silu(a) * b)


def ditdh_forward(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The published forward pass on codes [B, N, C], written out."""
    angles = 2 * math.pi * t[:, None] * state["t_embedder.W"]
    moment = apply(state, "t_embedder.mlp.0", torch.cat([angles.sin(), angles.cos()], dim=-1))
    moment = apply(state, "t_embedder.mlp.2", F.silu(moment))
    c = F.silu(moment + state["y_embedder.embedding_table.weight"][y])[:, None]
    s = F.linear(x, state["s_embedder.proj.weight"][:, :, 0, 0], state["s_embedder.proj.bias"]) + state["pos_embed"]
    for i in (0, 1):
        s = ditdh_block(state, i, s, c, TRUNK[1])
    s = apply(state, "s_projector", F.silu(moment[:, None] + s))
    h = F.linear(x, state["x_embedder.proj.weight"][:, :, 0, 0], state["x_embedder.proj.bias"])
    h = ditdh_block(state, 2, h, s, HEAD[1])
    shift, scale = apply(state, "final_layer.adaLN_modulation.1", F.silu(s)).chunk(2, dim=-1)
    h = F.rms_norm(h, h.shape[-1:], state["final_layer.norm_final.weight"], 1e-6)
    return apply(state, "final_layer.linear", h * (1 + scale) + shift)


@torch.no_grad()
@pytest.mark.parametrize("direction", ["noise", "data"])
def test_ditdh_is_its_own_forward_pass(direction):
    state, x, u, y = ditdh_state(), torch.randn(2, ROWS**2, DIM), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    network = ditdh.convert(state, head_depth=1, time=direction)["network"]
    theirs = ditdh_forward(state, x, u if direction == "noise" else 1 - u, y)
    ours = network(x, u, Condition(labels=y))
    torch.testing.assert_close(ours, theirs if direction == "noise" else -theirs, atol=1e-3, rtol=1e-3)


def test_ditdh_is_told_by_its_shapes_and_refuses_others(tmp_path):
    state = ditdh_state()
    network = ditdh.convert(state, head_depth=1)["network"]
    config = network.config
    assert (config.depth, config.width, config.heads) == (2, *TRUNK) and config.num_classes == 3
    assert (config.head_depth, config.head_width, config.head_heads) == (1, *HEAD)
    network.save_pretrained(tmp_path)
    again = WideHeadTransformer.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())
    with pytest.raises(ValueError, match="unexpected.*x_pos_embed"):
        ditdh.convert(state | {"x_pos_embed": torch.zeros(1)}, head_depth=1)
    with pytest.raises(ValueError, match="head_blocks.0.norm1.weight is .16."):
        ditdh.convert(state, head_depth=2)
    with pytest.raises(ValueError, match="fixed sine-cosine table"):
        ditdh.convert(state | {"pos_embed": torch.zeros_like(state["pos_embed"])}, head_depth=1)


def test_the_formats_are_listed():
    assert {"repa", "repa_e", "ditdh"} <= set(formats())
