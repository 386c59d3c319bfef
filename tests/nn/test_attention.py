"""Every kernel behind the one door is the same function, and the right one is chosen."""

import pytest
import torch

from pipeline.nn import attention as door
from pipeline.nn.attention import attention, backend, causal_mask, dropped_attention, set_backend


def inputs(dtype=torch.float32, tokens=17, keys=None, gradients=False):
    q, k, v = (torch.randn(2, 3, n, 8).to(dtype) for n in (tokens, keys or tokens, keys or tokens))
    return q.requires_grad_(gradients), k, v


MASK = torch.rand(2, 1, 17, 17, generator=torch.Generator().manual_seed(0)) > 0.3
CASES = {
    "plain": {},
    "causal": {"causal": True},
    "bool_mask": {"mask": MASK},
    "additive_mask": {"mask": MASK.float() * 2},
    "scale": {"scale": 0.2},
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_written_out_is_sdpa(arguments):
    q, k, v = inputs()
    results = {}
    for name in ("sdpa", "written_out"):
        with backend(name):
            leaves = [t.clone().requires_grad_() for t in (q, k, v)]
            out = attention(*leaves, **arguments)
            results[name] = [out, *torch.autograd.grad(out.square().sum(), leaves)]
    for one, other in zip(*results.values()):
        assert torch.allclose(one, other, atol=1e-5)


def test_it_is_a_softmax_over_keys():
    q, k, v = inputs(tokens=3, keys=5)
    weights = torch.exp(torch.einsum("bhnd,bhmd->bhnm", q, k) / 8**0.5)
    expected = torch.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdim=True), v)
    assert torch.allclose(attention(q, k, v), expected, atol=1e-5)


def test_no_later_token_is_seen():
    q, k, v = inputs()
    before = attention(q, k, v, causal=True)
    k[:, :, 9:], v[:, :, 9:] = 0, 0
    after = attention(q, k, v, causal=True)
    assert torch.equal(before[:, :, :9], after[:, :, :9]) and not torch.allclose(before[:, :, 9:], after[:, :, 9:])


@pytest.mark.parametrize(
    "native, dtype, tokens, gradients, expected",
    [
        (True, torch.bfloat16, 64, True, "written_out"),
        (True, torch.bfloat16, 64, False, "sdpa"),
        (True, torch.bfloat16, 1024, True, "sdpa"),
        (True, torch.float32, 64, True, "sdpa"),
        (False, torch.bfloat16, 64, True, "sdpa"),
    ],
)
def test_choice(monkeypatch, native, dtype, tokens, gradients, expected):
    monkeypatch.setattr(door, "_has_half_products", lambda half: native)
    q, k, v = inputs(dtype, tokens, gradients=gradients)
    assert door._choose_backend(q, k, v) == expected
    with torch.no_grad():
        assert door._choose_backend(q, k, v) == "sdpa"


def test_a_stated_backend_holds_for_its_block():
    q, k, v = inputs()
    with backend("written_out"):
        assert door._choose_backend(q, k, v) == "written_out"
    assert door._choose_backend(q, k, v) == "sdpa"


def test_mistakes_are_one_line(monkeypatch):
    q, k, v = inputs()
    with pytest.raises(ValueError, match="there are: auto, sdpa"):
        set_backend("flash")
    with pytest.raises(ValueError, match="not both"):
        attention(q, k, v, mask=MASK, causal=True)
    monkeypatch.setitem(__import__("sys").modules, "xformers.ops", None)
    with pytest.raises(ValueError, match="xformers is not installed"):
        set_backend("xformers")
    assert door._backend == "auto"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers has kernels for CUDA only")
@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_xformers_is_sdpa(arguments):
    pytest.importorskip("xformers.ops")
    q, k, v = (t.cuda() for t in inputs())
    arguments = {n: a.cuda() if isinstance(a, torch.Tensor) else a for n, a in arguments.items()}
    expected = attention(q, k, v, **arguments)
    with backend("xformers"):
        assert torch.allclose(attention(q, k, v, **arguments), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
def test_compiled_is_eager(monkeypatch, native):
    monkeypatch.setattr(door, "_has_half_products", torch.compiler.assume_constant_result(lambda half: native))
    q, k, v = inputs(torch.bfloat16, gradients=True)
    compiled = torch.compile(attention, fullgraph=True)
    assert torch.allclose(compiled(q, k, v), attention(q, k, v), atol=2e-2)
    with torch.no_grad():
        assert torch.allclose(compiled(q, k, v), attention(q, k, v), atol=2e-2)


def test_a_causal_mask_leaves_out_keys_and_never_all():
    keys = torch.tensor([[False, False, True, True], [True, False, True, True]])
    mask = causal_mask(keys)
    assert mask.shape == (2, 1, 4, 4)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected
    assert mask[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    q, k, v = inputs(tokens=4)
    found = attention(q, k, v, causal_mask(torch.ones(2, 4, dtype=torch.bool)))
    assert torch.allclose(found, attention(q, k, v, causal=True), atol=1e-6)


def test_dropped_weights_are_masked_as_any_others():
    q, k, v = inputs()
    everything = torch.ones(2, 3, 17, 17, dtype=torch.bool)
    mask = MASK | torch.eye(17, dtype=torch.bool)
    found = dropped_attention(q, k, v, everything, 0.0, mask=mask)
    assert torch.allclose(found, attention(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_dropped_weights_are_those_of_a_softmax_where_they_are_kept(causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    kept = torch.rand(2, 3, 5, 5) > 0.3
    scores = q @ k.mT / 2  # the square root of 4 channels
    if causal:
        scores = scores + torch.full((5, 5), float("-inf")).triu(1)
    expected = (scores.softmax(dim=-1) * kept / 0.7) @ v
    dropped = dropped_attention(q, k, v, kept, 0.3, causal)
    assert torch.allclose(dropped, expected, atol=1e-6)
    slope = torch.randn_like(dropped)
    found, wanted = (torch.autograd.grad(y, (q, k, v), slope) for y in (dropped, expected))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted))


def test_dropping_nothing_is_attention():
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    kept = torch.ones(2, 3, 5, 5, dtype=torch.bool)
    assert torch.allclose(dropped_attention(q, k, v, kept, 0.0, True), attention(q, k, v, causal=True), atol=1e-6)


def test_of_dropped_attention_its_inputs_alone_are_kept():
    q, k, v = (torch.randn(2, 3, 64, 4, requires_grad=True) for _ in range(3))
    kept, sizes = torch.rand(2, 3, 64, 64) > 0.1, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append((x.numel(), x.dtype)) or x, lambda x: x):
        dropped_attention(q, k, v, kept, 0.1, True)
    assert not any(count >= kept.numel() and dtype != torch.bool for count, dtype in sizes)
