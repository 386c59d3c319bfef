"""The only caller of attention kernels: it chooses one by device, type, length and need of gradients."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.nn.dropout import apply_dropout

Backend = Literal["auto", "sdpa", "written_out", "xformers"]

WRITTEN_OUT_TOKENS = 512  # on a CPU with bf16 products the written-out backward wins at 256 tokens and loses at 1,024

_backend: Backend = "auto"


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(scale * q k^T + mask) v, the same function whatever the backend.

    Args:
        q: [B, heads, N, D]. k and v: [B, heads, M, D].
        mask: broadcastable to [B, heads, N, M]; bool (True takes part) or additive in q's type.
        causal: query i sees keys 0..i, also where N and M differ.
        scale: D^-0.5 when None.

    Returns [B, heads, N, D]. Raises ValueError when both `mask` and `causal` are given.
    """
    if causal and mask is not None:
        raise ValueError("attention takes a mask or causal=True, not both; put the triangle into the mask")
    return _KERNELS[_choose_backend(q, k, v)](q, k, v, mask, causal, q.shape[-1] ** -0.5 if scale is None else scale)


def causal_mask(keys: Tensor) -> Tensor:
    """The mask [B, 1, N, N] by which place i sees itself and those before it that `keys` [B, N] bool has.

    A place that no other sees still sees itself, so that no softmax is over nothing.
    """
    places = torch.arange(keys.shape[1], device=keys.device)
    before, itself = places < places[:, None], places == places[:, None]  # [N, N]
    return (keys[:, None] & before | itself)[:, None]


def dropped_attention(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, rate: float, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Attention whose weights are dropped: softmax(D^-0.5 q k^T) where `kept`, times 1 / (1 - rate), times v.

    `kept` is bool [B, heads, N, M], see `Draws.keep_mask`; with `causal` query i sees keys 0..i, with a bool `mask`
    those that it has. The products are
    written out, since no kernel takes a mask of its caller for that, and computed again in the backward pass: of this
    call no more is kept than q, k, v and the mask, one byte a weight, where the weights would be four.
    """
    mask = _triangle(q, k) if causal else mask
    return checkpoint(_weigh, q, k, v, kept, rate, mask, use_reentrant=False, preserve_rng_state=False)


def _weigh(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, rate: float, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # [B, heads, N, M]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return apply_dropout(scores.softmax(dim=-1), kept, rate).to(v.dtype) @ v


def _triangle(q: Tensor, k: Tensor) -> Tensor:
    """Which keys [..., M, D] each of the queries [..., N, D] sees, [N, M] bool."""
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()


def set_backend(name: Backend) -> None:
    """Choose the kernel for every later call in this process; `auto` is the measured choice.

    Raises ValueError for an unknown name, and for xformers where it is not installed.
    """
    global _backend
    if name not in get_args(Backend):
        raise ValueError(f"there is no attention backend {name!r}; there are: {', '.join(get_args(Backend))}")
    if name == "xformers":
        _load_xformers()
    _backend = name


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """`set_backend` for the length of a with-block."""
    before = _backend
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def _choose_backend(q: Tensor, k: Tensor, v: Tensor) -> Backend:
    """SDPA, but for short sequences in half precision on a CPU, where its backward takes up to three times as long."""
    if _backend != "auto":
        return _backend
    if q.device.type != "cpu" or q.dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    short = max(q.shape[-2], k.shape[-2]) <= WRITTEN_OUT_TOKENS
    return "written_out" if gradients and short and _has_half_products(q.dtype) else "sdpa"


@torch.compiler.assume_constant_result
def _has_half_products(half: torch.dtype) -> bool:
    """Whether this CPU has products of this type; without them a written-out product is ten times slower than SDPA."""
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    return ops._is_mkldnn_bf16_supported() if half == torch.bfloat16 else ops._is_mkldnn_fp16_supported()


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)  # [B, heads, N, M]
    if causal:
        mask = _triangle(q, k)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1) @ v


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    if not q.is_cuda:
        raise ValueError(f"the xformers backend needs CUDA tensors, not {q.device.type}; choose auto or sdpa")
    ops = _load_xformers()
    bias = ops.LowerTriangularMask() if causal else _additive(mask, q, k)
    swap = [t.transpose(1, 2) for t in (q, k, v)]  # [B, N, heads, D]
    return ops.memory_efficient_attention(*swap, attn_bias=bias, scale=scale).transpose(1, 2)


def _additive(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask as xformers wants it: additive, in q's type, [B, heads, N, M]."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return mask.expand(*q.shape[:-1], k.shape[-2])


def _load_xformers():
    try:
        return importlib.import_module("xformers.ops")
    except ImportError:
        raise ValueError("xformers is not installed: pip install 'tessera[xformers]', or choose auto or sdpa") from None


_KERNELS: dict[str, Callable[..., Tensor]] = {"sdpa": _sdpa, "written_out": _written_out, "xformers": _xformers}
