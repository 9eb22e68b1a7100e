"""Sparse and local attention: exact against the dense mask, and the same switch on any ViT."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import UsageError
from saccade.models.attention_patterns import FULL, Pattern, computed_pairs, parse_pattern, segments
from saccade.models.backbones.build import build
from saccade.models.nn.attention import attend
from saccade.models.nn.sparse_attention import attend_local, dense_mask, tables, visible

PATTERNS = ("window:3", "window:4", "neighbourhood:3", "neighbourhood:7", "axial", "strided:2", "strided:3")


def both(text, grid, prefix, layer, dim=8):
    """Outputs and gradients of the sparse path and of the dense mask."""
    pattern, count = parse_pattern(text), prefix + math.prod(grid)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, count, dim, requires_grad=True) for _ in range(3))
    sparse = attend_local(q, k, v, pattern=pattern, grid=grid, prefix=prefix, layer=layer)
    dense = attend(q, k, v, mask=dense_mask(pattern, grid, prefix, layer), explicit=True)
    weights = torch.randn_like(sparse)
    return [[out, *torch.autograd.grad((out * weights).sum(), (q, k, v))] for out in (sparse, dense)]


@given(
    text=st.sampled_from((*PATTERNS, "window:1", "neighbourhood:1", "window:50", "neighbourhood:51", "strided:50")),
    grid=st.one_of(
        st.tuples(st.integers(1, 30)),
        st.tuples(st.integers(1, 11), st.integers(1, 11)),
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    ),
    prefix=st.sampled_from((0, 1, 5)),
    layer=st.integers(0, 3),
)
@settings(max_examples=120, deadline=None)
def test_sparse_is_dense_with_a_mask(text, grid, prefix, layer):
    for found, expected in zip(*both(text, grid, prefix, layer)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_definitions_on_a_line():
    """Seven tokens, token 3 asks (from 0)."""

    def seen(text, layer=0, row=3, length=7):
        return visible(parse_pattern(text), (length,), 0, layer, torch.tensor([row]))[0].nonzero().flatten().tolist()

    assert seen("full") == list(range(7))
    assert seen("window:3") == [3, 4, 5] and seen("window:3", row=6) == [6]
    assert seen("window:3", layer=1) == [1, 2, 3] and seen("window:3", layer=1, row=0) == [0]
    assert seen("neighbourhood:3") == [2, 3, 4] and seen("neighbourhood:3", row=0) == [0, 1, 2]
    assert seen("neighbourhood:3", row=6) == [4, 5, 6] and seen("neighbourhood:5", row=1, length=3) == [0, 1, 2]
    assert seen("strided:3") == [0, 3, 4, 5, 6] and seen("strided:2") == [1, 2, 3, 5]


def test_the_definitions_on_a_plane():
    def seen(text, layer=0):
        found = visible(parse_pattern(text), (5, 5), 0, layer, torch.tensor([12]))[0].view(5, 5)
        return ["".join(".x"[int(v)] for v in row) for row in found]

    assert seen("axial") == ["..x..", "..x..", "xxxxx", "..x..", "..x.."]
    assert seen("neighbourhood:3") == [".....", ".xxx.", ".xxx.", ".xxx.", "....."]
    assert seen("window:2") == [".....", ".....", "..xx.", "..xx.", "....."]
    assert seen("window:2", layer=1) == [".....", ".xx..", ".xx..", ".....", "....."]
    assert seen("strided:2") == ["x.x.x", ".....", "x.xxx", "..xx.", "x.x.x"]


@pytest.mark.parametrize("text", PATTERNS)
def test_prefix_tokens_see_and_are_seen_by_all(text):
    mask = dense_mask(parse_pattern(text), (9, 9), 2, 0)
    assert mask[:2].all() and mask[:, :2].all() and not mask.all()
    assert mask[2:, 2:].diagonal().all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("windows:7", "did you mean 'window'"),
        ("window", "window:K"),
        ("window:0", "window:K"),
        ("window:x", "window:K"),
        ("axial:3", "invalid attention"),
        ("full:2", "invalid attention"),
        ("neighbourhood:4", "odd"),
    ],
)
def test_names_that_mean_nothing(text, said):
    with pytest.raises(UsageError, match=said):
        parse_pattern(text)
    with pytest.raises(UsageError, match=said):
        build("vit_micro_patch8", size_px=32, options={"attention": text})


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_segments_take_every_query_once(text, length):
    pattern = parse_pattern(text)
    kinds = {"axial": ("whole", "single"), "strided": ("window", "rest")}.get(pattern.kind, (pattern.kind,))
    for kind in kinds:
        for shifted in (False, True):
            cut = segments(kind, pattern.reach, length, shifted=shifted)
            assert sorted(q for queries, _ in cut for q in queries) == list(range(length))
            assert all(set(queries) <= set(keys) for queries, keys in cut)


@pytest.mark.parametrize("text", PATTERNS)
def test_counted_pairs_are_the_computed_ones(text, monkeypatch):
    """The planner's figure against the shapes of the score matrices that are really made."""
    pattern, grid, prefix = parse_pattern(text), (9, 8), 2
    q = torch.randn(1, 1, prefix + 72, 4)
    made = []
    real = torch.softmax

    def watched(scores, dim):
        made.append(scores.numel())
        return real(scores, dim=dim)

    monkeypatch.setattr("torch.softmax", watched)
    monkeypatch.setattr("saccade.models.nn.attention._explicit_is_faster", lambda query, key: True)
    attend_local(q, q, q, pattern=pattern, grid=grid, prefix=prefix, layer=1)
    counted = computed_pairs(pattern, grid, prefix, 1)
    assert sum(made) <= counted < 1.3 * sum(made)
    if pattern.kind != "strided":  # whose tiles are cut unevenly: scores of filled-up queries are dropped
        assert sum(made) == counted
    assert computed_pairs(FULL, grid, prefix, 0) == (72 + 2) ** 2


@pytest.mark.parametrize("kind", ["window:7", "neighbourhood:7"])
def test_pairs_grow_with_the_number_of_tokens(kind):
    pattern = parse_pattern(kind)
    small, large = (computed_pairs(pattern, (side, side), 1, 0) for side in (32, 256))
    assert math.log(large / small) / math.log(64) < 1.05


# --- the switch on a ViT ------------------------------------------------------------------------


def vit(**options):
    return build("vit_micro_patch4_w64", size_px=32, options=options).eval()


@pytest.mark.parametrize("text", ["window:64", "neighbourhood:65", "strided:64"])
@pytest.mark.parametrize("more", [{}, {"registers": 2, "positions": "rotary"}, {"norm": "post", "positions": "sincos"}])
def test_a_pattern_larger_than_the_grid_is_full_attention(text, more):
    full, sparse = vit(**more), vit(attention=text, **more)
    assert full.state_dict().keys() == sparse.state_dict().keys()
    sparse.load_state_dict(full.state_dict())
    x = torch.randn(2, 3, 24, 40)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x).tokens, full(x).tokens, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(sparse(x).cls, full(x).cls, atol=1e-5, rtol=1e-4)


def test_the_name_says_it_too():
    named, optioned = build("vit_micro_patch8_window3", size_px=32), vit(attention="window:3")
    assert named.pattern == optioned.pattern == Pattern("window", 3)
    assert build("vit_micro_patch8_axial", size_px=32).pattern == Pattern("axial")
    assert build(**named.config()).pattern == named.pattern
    for name in ("vit_micro_patch8_axial3", "vit_micro_patch8_window", "resnet18_window3"):
        with pytest.raises(UsageError, match="unknown backbone"):
            build(name)


@pytest.mark.parametrize("text", PATTERNS)
def test_attention_rows_are_those_of_the_pattern(text):
    net, x = vit(attention=text, registers=1), torch.randn(1, 3, 24, 32)
    rows = torch.tensor([0, 1, 2, 20, 49])
    with torch.inference_mode():
        for layer in (0, 1):
            found = net.attention(x, layer=layer, rows=rows)
            mask = dense_mask(net.pattern, (6, 8), 2, layer)[rows]
            torch.testing.assert_close(found.sum(-1), torch.ones(1, net.heads, 5), atol=1e-5, rtol=0)
            assert (found[:, :, ~mask] == 0).all() and (found[:, :, mask] > 0).all()
        rollout = net.rollout(x, 5)
        torch.testing.assert_close(rollout.sum(-1), torch.ones(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", PATTERNS)
def test_what_lies_outside_the_pattern_has_no_influence(text):
    """One layer without class token or positions: a changed patch moves those that see it, and no other."""
    from saccade.models.nn.blocks import Block

    grid, pattern = (6, 7), parse_pattern(text)
    block = Block(16, 2, pattern=pattern, layer=1).double().eval()
    x = torch.randn(1, 42, 16, dtype=torch.float64)
    other = x.clone()
    other[:, 17] += torch.randn(16)
    moved = (block(x, None, grid) - block(other, None, grid)).abs().amax(dim=-1)[0] > 1e-12
    assert torch.equal(moved, dense_mask(pattern, grid, 0, 1)[:, 17])


def test_tables_made_while_looking_serve_training():
    tables.cache_clear()
    net, x = vit(attention="neighbourhood:3"), torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        net(x)
    net(x).cls[:, 0].sum().backward()
    assert net.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
