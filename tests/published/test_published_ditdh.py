"""DiT^DH checkpoints convert with every switch that their keys tell."""

import pytest
import torch
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.code import Condition
from pipeline.networks.wide_head_transformer import WideHeadTransformer
from pipeline.published.ditdh import convert

SIZE = {"depth": 2, "width": 16, "heads": 2, "head_depth": 1, "head_width": 24, "head_heads": 3}
NAMES = {  # ours to the release's
    "patch_embedding.": "s_embedder.proj.",
    "head_embedding.": "x_embedder.proj.",
    "head_request.": "s_projector.",
    "time_embedding.frequencies": "t_embedder.W",
    "time_embedding.up.": "t_embedder.mlp.0.",
    "time_embedding.down.": "t_embedder.mlp.2.",
    "label_embedding.": "y_embedder.embedding_table.",
    "head.norm.": "final_layer.norm_final.",
    "head.linear.": "final_layer.linear.",
    "head.modulation.": "final_layer.adaLN_modulation.1.",
    ".modulation.": ".adaLN_modulation.1.",
    ".attention.query_norm.": ".attn.q_norm.",
    ".attention.key_norm.": ".attn.k_norm.",
    ".attention.": ".attn.",
    "head_blocks.0.": "blocks.2.",
}


def published(network: WideHeadTransformer) -> dict[str, Tensor]:
    """The state under the release's names, with the tables that it stores."""
    up, down = ("w12", "w3") if network.config.feed_forward == "swiglu" else ("fc1", "fc2")
    names = NAMES | {".feed_forward.up.": f".mlp.{up}.", ".feed_forward.down.": f".mlp.{down}."}
    state = {}
    for name, value in network.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = value[..., None, None] if name.endswith("_embedder.proj.weight") else value
    state |= {"enc_feat_rope.freqs_cos": network.cosines, "dec_feat_rope.freqs_cos": network.head_cosines}
    return state | ({} if network.positions is None else {"pos_embed": network.positions[None]})


@torch.no_grad()
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"query_key_norm": True, "head_width": 16, "head_heads": 2},
        {"norm": "layer", "query_key_norm": "layer"},
        {"feed_forward": "gelu", "position": "rotary"},
    ],
    ids=["released", "query_key_norm", "layer_norms", "gelu"],
)
def test_switches_are_read_off_the_keys(switches):
    network = randomised(WideHeadTransformer([4, 4], 3, 5, **SIZE | switches), 2).eval()
    made = convert(published(network), head_depth=1)["network"].eval()
    request = torch.randn(3, 16, 3), torch.linspace(0.1, 0.9, 3), Condition(labels=torch.tensor([0, 4, 5]))
    torch.testing.assert_close(made(*request), network(*request))
    assert {name: made.config[name] for name in switches} == switches


def test_a_table_of_no_square_is_refused():
    network = WideHeadTransformer([2, 4], 3, 5, **SIZE, position="rotary")
    with pytest.raises(ValueError, match="positions of 8 tokens, which make no square"):
        convert(published(network), head_depth=1)
