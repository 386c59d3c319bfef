"""One-D-Piece checkpoints, tokenizers and generators (turingmotors/One-D-Piece, arXiv:2501.10064)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.published import maskgit, titok
from pipeline.published.checkpoint import need

WHAT = "One-D-Piece's tokenizers and MaskGIT generators (turing-motors/One-D-Piece-*-256, MaskGIT_One-D-Piece-*)"


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    unit_norm: bool | None = None,
    proxy_start: str | None = None,
) -> dict[str, object]:
    """{"tokenizer"}, or {"network", "objective"} of a generator: which of the two it is, the keys tell.

    Both have the keys of TiTok's files. A tokenizer decodes any first tokens of a code, the perturbation `prefix_drop`
    of its training being no weight. `heads` and `decoder_heads` follow from the widths for the published sizes;
    `proxy_start` as in `titok.convert`, for a first stage. Raises ValueError for other keys or shapes, and for options
    of a tokenizer beside a generator.
    """
    if "latent_tokens" in state:
        need(state, "decoder.ffn.2.weight", "One-D-Piece")  # one stage of its own has no prefix to decode
        return titok.convert(state, heads, decoder_heads, unit_norm, proxy_start)
    given = {"decoder_heads": decoder_heads, "unit_norm": unit_norm, "proxy_start": proxy_start}
    if stated := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(stated)} is about a tokenizer, and this is a generator; leave it out")
    return maskgit.convert(state, heads)
