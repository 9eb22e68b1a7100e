"""One attention, two paths: the same numbers, the equation's symmetries, and clear refusals."""

import jaxtyping
import pytest
import torch
from beartype import beartype

from saccade.errors import ModelError
from saccade.models.nn import attention
from saccade.models.nn.attention import attend, attention_rows
from saccade.models.nn.blocks import Attention


def qkv(batch=2, heads=3, count=7, keys=11, dk=8, dv=5, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, count, dk), (batch, heads, keys, dk), (batch, heads, keys, dv)]
    return [torch.randn(s, generator=g, dtype=dtype) for s in shapes]


@pytest.mark.parametrize("widths", [(8, 8), (8, 5), (4, 20)])
@pytest.mark.parametrize("mask", [None, "bool", "added"])
def test_fused_and_explicit_give_the_same(widths, mask):
    q, k, v = qkv(dk=widths[0], dv=widths[1])
    seen = torch.rand(7, 11, generator=torch.Generator().manual_seed(1)) > 0.4
    seen[:, 0] = True
    m = {None: None, "bool": seen, "added": torch.where(seen, 0.3, -2.0)}[mask]
    fused, explicit = (attend(q, k, v, explicit=e, mask=m) for e in (False, True))
    assert fused.shape == (2, 3, 7, widths[1])
    torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-5)
    if mask == "bool":
        moved = v + torch.randn(11, 1) * ~seen[0][:, None]
        torch.testing.assert_close(attend(q[:, :, :1], k, moved, mask=seen[:1]), explicit[:, :, :1])


def test_the_equation_by_hand():
    q = torch.tensor([[[[1.0, 0.0]]]])
    k = torch.tensor([[[[2.0**0.5, 0.0], [0.0, 1.0]]]])
    v = torch.tensor([[[[1.0], [0.0]]]])
    expected = torch.e / (torch.e + 1)  # scores 1 and 0 after the division by sqrt(2)
    for explicit in (True, False, None):
        assert attend(q, k, v, explicit=explicit).item() == pytest.approx(expected, abs=1e-6)


def test_gradients_of_both_paths_agree_and_are_right():
    inputs = [t.requires_grad_() for t in qkv(batch=1, heads=2, count=3, keys=4, dk=3, dv=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: attend(*t, explicit=True), inputs)
    grads = [torch.autograd.grad(attend(*inputs, explicit=e).square().sum(), inputs) for e in (True, False)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("unchecked")
def test_unequal_widths_and_lengths_are_refused():
    q, k, v = qkv()
    with pytest.raises(ModelError, match=r"widths(.|\n)*hint"):
        attend(q[..., :4], k, v)
    with pytest.raises(ModelError, match="widths"):
        attention_rows(q[..., :4], k, torch.tensor([0]))
    with pytest.raises(ModelError, match=r"lengths(.|\n)*hint"):
        attend(q, k, v[:, :, :5])
    with pytest.raises(ModelError, match="heads"):
        Attention(10, 3)


def test_rows_are_those_of_the_whole_matrix():
    q, k, v = qkv()
    rows = torch.tensor([6, 0, 3])
    found = attention_rows(q, k, rows)
    dense = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, dim=-1)
    torch.testing.assert_close(found, dense[:, :, rows])
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 3))
    torch.testing.assert_close(found @ v, attend(q, k, v, explicit=False)[:, :, rows], atol=1e-5, rtol=1e-5)


def test_permutation_equivariance():
    torch.manual_seed(0)
    layer, x, order = Attention(12, 3), torch.randn(2, 9, 12), torch.randperm(9)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


@pytest.mark.parametrize(
    ("dtype", "count", "gradient", "expected"),
    [
        (torch.bfloat16, 65, True, True),
        (torch.bfloat16, 65, False, True),
        (torch.bfloat16, 513, True, False),
        (torch.float32, 65, True, True),
        (torch.float32, 65, False, False),
        (torch.float32, 193, True, False),
    ],
)
def test_which_path_none_takes(monkeypatch, dtype, count, gradient, expected):
    calls = []
    real = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    q = torch.randn(1, 1, count, 4, dtype=dtype, requires_grad=gradient)
    attend(q, q, q)
    assert (not calls) == expected


def test_shapes_as_annotated():
    """jaxtyping's annotations hold and refuse what does not fit."""
    checked = jaxtyping.jaxtyped(typechecker=beartype)(attention_rows)
    q, k, _ = qkv()
    assert checked(q, k, torch.tensor([1])).shape == (2, 3, 1, 11)
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(q, k[:1], torch.tensor([1]))
