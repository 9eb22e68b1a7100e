"""The ViT against timm, against its own symmetries, and attention against a dense reference."""

import pytest
import timm
import torch

from saccade.errors import ModelError, UsageError
from saccade.models.backbones.build import build
from saccade.models.backbones.vit import ViTSettings
from saccade.models.backbones.weights import load_timm_state
from saccade.models.nn.blocks import Block
from saccade.models.nn.vit import ViT

SMALL = {"name": "vit_test_patch4", "dim": 24, "depth": 3, "heads": 3, "patch": 4, "size_px": 16}


def small(**more) -> ViT:
    torch.manual_seed(0)
    net = ViT(ViTSettings(**(SMALL | more))).eval()
    for name, p in net.named_parameters():  # small random weights hide mistakes: make attention sharp
        if p.ndim > 1 and "blocks" in name:
            torch.nn.init.normal_(p, std=0.4)
    return net


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VARIANTS = [
    {},
    {"positions": "sincos"},
    {"positions": "rotary", "registers": 2},
    {"positions": "none", "layer_scale": 0.1},
    {"norm": "post"},
    {"stem": "conv", "registers": 4},
]


@pytest.mark.parametrize(
    ("peer_name", "ours", "sides"),
    [
        ("vit_tiny_patch16_224", "vit_tiny_patch16", [(224, 224), (64, 96)]),
        ("vit_small_patch16_224", "vit_small_patch16", [(224, 224)]),
        ("vit_small_patch14_dinov2", "vit_small_patch14", [(224, 224), (518, 518)]),
        ("vit_small_patch14_reg4_dinov2", "vit_small_patch14", [(224, 224)]),
    ],
)
def test_equal_to_timm(peer_name, ours, sides):
    torch.manual_seed(0)
    peer = timm.create_model(peer_name, num_classes=0, dynamic_img_size=True).eval()
    dinov2 = "dinov2" in peer_name
    registers = 4 if "reg4" in peer_name else 0
    for name, p in peer.named_parameters():
        if name.endswith("gamma") or name.startswith(("cls", "reg")):  # timm starts them near zero
            torch.nn.init.normal_(p, std=0.5)
    options = {"layer_scale": 1e-5 if dinov2 else None, "registers": registers}
    net = build(ours, size_px=518 if dinov2 else 224, options=options).eval()
    load_timm_state(net, peer.state_dict())
    for side in sides:
        x = image(1, 3, *side)
        with torch.inference_mode():
            found, expected = net(x), peer.forward_features(x)
        torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.tokens, expected[:, 1 + registers :], atol=1e-5, rtol=1e-5)
        assert found.grid == tuple(n // net.patch for n in side)


@pytest.mark.parametrize("more", VARIANTS)
@pytest.mark.parametrize("size", [(16, 16), (12, 28), (32, 8)])
def test_any_size_and_a_batch_is_its_images(more, size):
    net, x = small(**more), image(2, 3, *size)
    with torch.inference_mode():
        both = net(x)
        single = [net(x[i : i + 1]) for i in range(2)]
    assert both.grid == (size[0] // 4, size[1] // 4)
    assert both.tokens.shape == (2, both.grid[0] * both.grid[1], 24) and both.cls.shape == (2, 24)
    assert net.prefix == 1 + more.get("registers", 0)
    torch.testing.assert_close(both.cls, torch.cat([s.cls for s in single]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.tokens, torch.cat([s.tokens for s in single]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["none", "learned", "sincos", "rotary"])
def test_only_positions_tell_patches_apart(positions):
    """Shuffled patches: shuffled tokens and the same class token, exactly when there are no positions."""
    net, x = small(positions=positions), image(1, 3, 16, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    tiles = x.reshape(1, 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 3, 4, 4)[:, order]
    shuffled = tiles.reshape(1, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(1, 3, 16, 16)
    with torch.inference_mode():
        plain, moved = net(x), net(shuffled)
    distance = (moved.tokens - plain.tokens[:, order]).abs().max().item()
    class_distance = (moved.cls - plain.cls).abs().max().item()
    if positions == "none":
        assert distance < 1e-4 and class_distance < 1e-4
    else:
        assert distance > 1e-2 and class_distance > 1e-2


def dense(net: ViT, x: torch.Tensor) -> list[torch.Tensor]:
    """Attention matrices [B H N N] of all layers, from what each block is really given, by a hook."""
    given: list[tuple] = []
    handles = [
        block.attn.register_forward_pre_hook(lambda module, args: given.append((module, *args)))
        for block in net.blocks
        if isinstance(block, Block)
    ]
    with torch.inference_mode():
        net(x)
        for handle in handles:
            handle.remove()
        maps = []
        for module, tokens, rotation, *_ in given:
            q, k, _ = module.split(tokens, rotation)
            maps.append(torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1))
    return maps


@pytest.mark.parametrize("more", VARIANTS)
def test_attention_rows_of_every_layer(more):
    net, x = small(**more), image(2, 3, 12, 20)
    reference = dense(net, x)
    assert len(reference) == 3
    rows = torch.tensor([0, 9, 3])
    for layer in (0, 1, 2, -1, -3):
        with torch.inference_mode():
            found = net.attention(x, layer=layer, rows=rows)
        assert found.shape == (2, 3, 3, net.prefix + 15)
        torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 3))
        torch.testing.assert_close(found, reference[layer][:, :, rows], atol=1e-6, rtol=1e-4)
    assert reference[0].std() > 1e-3  # sharp enough for the comparison to mean something


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("more", [{}, {"positions": "rotary", "registers": 2}, {"norm": "post"}])
def test_rollout_is_the_dense_product(monkeypatch, fusion, more):
    net, x = small(**more), image(2, 3, 12, 20)
    product = None
    for heads in dense(net, x):
        fused = {"mean": heads.mean(1), "max": heads.amax(1), "min": heads.amin(1)}[fusion]
        fused = fused / fused.sum(-1, keepdim=True)
        step = 0.5 * fused + 0.5 * torch.eye(fused.shape[-1])
        product = step if product is None else step @ product
    for chunk in (2**24, 1):  # all rows at once, and one row at a time
        monkeypatch.setattr("saccade.models.nn.attention.CHUNK_ELEMENTS", chunk)
        with torch.inference_mode():
            for row in (0, 7):
                found = net.rollout(x, row, head_fusion=fusion)
                torch.testing.assert_close(found, product[:, row], atol=1e-6, rtol=1e-4)
                torch.testing.assert_close(found.sum(-1), torch.ones(2))


def test_many_tokens_need_no_square_matrix(monkeypatch):
    """At 4,097 tokens one N x N matrix per head would be 192 MiB; no tensor that large may be made."""
    net, x = small(), image(1, 3, 256, 256)
    largest = 0
    real = torch.softmax

    def watched(scores, dim):
        nonlocal largest
        largest = max(largest, scores.numel())
        return real(scores, dim=dim)

    monkeypatch.setattr("saccade.models.nn.attention.torch.softmax", watched)
    with torch.inference_mode():
        assert net.attention(x, rows=torch.tensor([0, 4096])).shape == (1, 3, 2, 4097)
        assert largest == 3 * 2 * 4097
        monkeypatch.setattr("saccade.models.nn.attention.CHUNK_ELEMENTS", 2**20)
        assert net.rollout(x, 0).shape == (1, 4097)
    assert largest <= 2**20


@pytest.mark.usefixtures("unchecked")
def test_layers_rows_and_fusions_that_are_not_there():
    net, x = small(), image(1, 3, 16, 16)
    for layer in (3, -4):
        with pytest.raises(UsageError, match="layer"):
            net.attention(x, layer=layer, rows=torch.tensor([0]))
    for row in (-1, 17):
        with pytest.raises(UsageError, match="token"):
            net.attention(x, rows=torch.tensor([row]))
        with pytest.raises(UsageError, match="token"):
            net.rollout(x, row)
    with pytest.raises(UsageError, match="did you mean 'mean'"):
        net.rollout(x, 0, head_fusion="meen")


def test_settings_out_of_range():
    with pytest.raises(UsageError, match="out of range"):
        small(registers=-1)
    with pytest.raises(UsageError, match="out of range"):
        small(drop_path=1.0)
    with pytest.raises(ModelError, match="nearest"):
        small(size_px=18)


@pytest.mark.parametrize("more", [{"norm": "post"}, {"norm": "pre", "drop_path": 0.2}])
def test_it_learns(more):
    """Loss of telling eight images apart falls, with either norm."""
    torch.manual_seed(0)
    net = ViT(ViTSettings(**(SMALL | more))).train()
    head = torch.nn.Linear(24, 8)
    optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=3e-3)
    x, y = image(8, 3, 16, 16), torch.arange(8)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(head(net(x).cls), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_drop_path_rises_with_depth_and_rests_in_evaluation():
    net = small(drop_path=0.3)
    assert [b.drop_path.rate for b in net.blocks] == pytest.approx([0.0, 0.15, 0.3])
    x = image(4, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(net(x).cls, net(x).cls)
        net.train()
        assert not torch.equal(net(x).cls, net(x).cls)


def test_gradients_in_float64():
    net = ViT(ViTSettings(**(SMALL | {"dim": 6, "depth": 1, "heads": 1, "size_px": 8, "positions": "rotary"})))
    x = image(1, 3, 8, 8).double().requires_grad_()
    net = net.double()
    assert torch.autograd.gradcheck(lambda p: (net(p).cls, net(p).tokens), x, fast_mode=True)


def test_bf16_and_fp32_agree():
    net, x = small(), image(2, 3, 16, 16)
    with torch.inference_mode():
        exact = net(x).cls
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = net(x).cls
    assert torch.nn.functional.cosine_similarity(exact, rough.float()).min() > 0.999
