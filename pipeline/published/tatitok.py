"""TA-TiTok checkpoints (bytedance/1d-tokenizer, arXiv:2501.07730)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.published import titok
from pipeline.published.checkpoint import need, rename

WHAT = "TA-TiTok, with codes or continuous tokens (turkeyju/tokenizer_tatitok_*: model.safetensors)"
NAMES = (
    titok.NAMES
    | titok.OF_PIXELS
    | {
        r"decoder\.text_guidance_proj\.(weight|bias)": r"decoder.captions.projection.\1",
        r"decoder\.text_guidance_positional_embedding": "decoder.captions.positions",
        r"quantize\.embed_prob": "neck.usage",
    }
)


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    unit_norm: bool | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of a TA-TiTok state: one with `quantize.embed_prob` has the codebook of `online_clustered`.

    Codes have their own length, as released; `unit_norm` says it where a codebook is otherwise. `heads` and
    `decoder_heads` follow from the widths for the published sizes. Raises ValueError for keys or shapes that are not
    TA-TiTok's.
    """
    width, channels = need(state, "decoder.text_guidance_proj.weight", "TA-TiTok").shape
    places = len(need(state, "decoder.text_guidance_positional_embedding", "TA-TiTok"))
    arguments = titok.shapes(state, heads, decoder_heads, two_stage=False)
    arguments = {name: value for name, value in arguments.items() if name not in ("head", "interleaved")}
    if "quantize.embed_prob" in state:
        arguments["bottleneck"] |= {"kind": "online_clustered"}
    titok.state_unit_norm(arguments["bottleneck"], unit_norm)
    captions = {"text_tokens": places, "text_dim": channels, "text_layers": 1}
    return {"tokenizer": titok.assemble("tatitok", rename(state, NAMES), arguments, **captions)}
