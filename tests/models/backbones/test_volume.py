"""Networks for volumes: the same names and promises as for images, and what is refused by name."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saccade.base.contracts import InputSpec
from saccade.cost.flops import cost
from saccade.errors import ModelError, UsageError
from saccade.models.attention_patterns import parse_pattern
from saccade.models.backbones.build import build, count_parameters, rebuild, use_checkpointing
from saccade.models.backbones.weights import load_model, load_timm_state, save_model, to_timm_state
from saccade.models.nn import attention
from saccade.models.nn.attention import attend
from saccade.models.nn.sparse_attention import attend_local, dense_mask
from saccade.models.registry import CARDS, parse

SIZE = 16
EXAMPLES = {
    "vit_micro_patch4_w32": {"registers": 2, "layer_scale": 0.1},
    "vit_micro_patch8_w48": {"positions": "rotary"},
    "vit_micro_patch4_w36": {"positions": "factorised", "norm": "post"},
    "vit_micro_patch4_w40": {"positions": "sincos", "pool": "mean"},
    "vit_micro_patch4_w32_conv": {},
    "vit_micro_patch4_w32_window3": {},
    "vit_micro_patch4_w32_neighbourhood3": {},
    "vit_micro_patch4_w32_axial": {},
    "vit_micro_patch4_w32_strided2": {"registers": 1},
    "hybrid_micro_patch4_w32": {},
    "hvt_micro_patch2_w32": {},
    "resnet10_w8": {},
    "resnet18_w4": {"stem": "imagenet"},
    "resnet50_w4": {},
}
every_network = pytest.mark.parametrize("name", EXAMPLES)


def network(name: str, *, seed: int = 0, size_px: int = SIZE, slices: int = 0):
    options = EXAMPLES.get(name, {})
    return build(name, channels=2, size_px=size_px, axes=3, slices=slices, options=options, seed=seed)


def volumes(count: int, *size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 2, 3, 3, 3, generator=generator)
    smooth = nn.functional.interpolate(coarse, size or (SIZE,) * 3, mode="trilinear")
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)


def counted(net, size_px: int) -> tuple[int, int, int, int]:
    flops = []
    for count in (1, 2):
        with FlopCounterMode(display=False) as counter:
            features = net(torch.zeros(count, 2, size_px, size_px, size_px))
        flops.append(counter.get_total_flops())
    return count_parameters(net), flops[1] - flops[0], features.tokens.shape[1], net.dim


@every_network
def test_costs_are_those_of_the_network(name, monkeypatch):
    monkeypatch.setattr(attention, "EXPLICIT_TOKENS_FP32", 10**9)  # torch counts no fused attention on the CPU
    found = cost(name, size_px=24, channels=2, axes=3, options=EXAMPLES[name])
    assert (found.parameters, found.flops, found.tokens, found.dim) == counted(network(name, size_px=24).eval(), 24)


def test_cost_of_slices(monkeypatch):
    monkeypatch.setattr(attention, "EXPLICIT_TOKENS_FP32", 10**9)
    found = cost("vit_micro_patch4_w32", size_px=16, channels=2, slices=5, options=EXAMPLES["vit_micro_patch4_w32"])
    net = network("vit_micro_patch4_w32", slices=5).eval()
    assert (found.parameters, found.flops, found.tokens, found.dim) == counted(net, 16)


@every_network
def test_features_of_any_box(name):
    net = network(name).eval()
    unit = max(8, parse(name).unit_px)
    with torch.no_grad():
        found = net(volumes(2, unit, 2 * unit, 3 * unit))
    assert found.cls.shape == (2, net.dim) and found.tokens.shape[0] == 2
    assert len(found.grid) == 3 and torch.tensor(found.grid).prod() == found.tokens.shape[1]
    alone = net(volumes(2, unit, 2 * unit, 3 * unit)[:1])
    torch.testing.assert_close(alone.cls, found.cls[:1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match="do not fit"):
        net(torch.zeros(1, 2, 16, 16))


@every_network
def test_learns(name):
    """The loss of eight volumes of four classes falls; every parameter has a part in it."""
    torch.manual_seed(0)
    net = network(name)
    head = nn.Linear(net.dim, 4)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-3, weight_decay=0)
    x, labels, losses = volumes(8), torch.arange(8) % 4, []
    for _ in range(25):
        loss = nn.functional.cross_entropy(head(net(x).cls), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    unused = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # With the mean as the vector the class token of the last layer only is not asked.
    assert unused == []


@every_network
def test_saved_and_loaded(name, tmp_path):
    net = network(name, seed=3).eval()
    spec = InputSpec(2, SIZE, 0.0, 255.0, (0.5,) * 2, (0.2,) * 2)
    save_model(tmp_path / "model", net, spec, about={"method": "dino"})
    loaded = load_model(tmp_path / "model")
    x = volumes(1)
    torch.testing.assert_close(loaded.backbone(x).cls, net(x).cls)
    assert loaded.spec == spec
    assert count_parameters(rebuild(net)) == count_parameters(net)


@pytest.mark.parametrize(
    "attention", ["window:2", "window:3", "neighbourhood:3", "neighbourhood:5", "axial", "strided:2"]
)
@pytest.mark.parametrize("layer", [0, 1])
def test_sparse_attention_is_its_definition(attention, layer):
    pattern, grid, prefix = parse_pattern(attention), (5, 6, 7), 2
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, prefix + 5 * 6 * 7, 8).unbind(0)
    found = attend_local(query, key, value, pattern=pattern, grid=grid, prefix=prefix, layer=layer)
    wanted = attend(query, key, value, mask=dense_mask(pattern, grid, prefix, layer))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "factorised", "sincos", "rotary"])
def test_positions_tell_every_place_apart(positions):
    """Shuffled along any one axis, a volume has another vector; without positions it has the same."""
    x = volumes(1)
    for axis in (2, 3, 4):
        turned = x.unflatten(axis, (4, 4)).flip(axis).flatten(axis, axis + 1)  # whole patches change places
        answers = {}
        for kind in (positions, "none"):
            net = build("vit_micro_patch4_w48", channels=2, size_px=SIZE, axes=3, options={"positions": kind}).eval()
            answers[kind] = (net(x).cls - net(turned).cls).abs().max()
        assert answers[positions] > 10 * answers["none"]


@pytest.mark.parametrize("name", ["vit_micro_patch2_w32", "hvt_micro_patch2_w32", "vit_micro_patch2_w32_window3"])
def test_checkpointing_keeps_gradients_and_forgets_activations(name):
    def backward(net) -> tuple[dict[str, torch.Tensor], int]:
        held = 0

        def pack(tensor):
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = net(volumes(2)).cls.square().sum()
        loss.backward()
        return {n: p.grad for n, p in net.named_parameters()}, held

    plain = network(name)
    thrifty = copy.deepcopy(plain)
    use_checkpointing(thrifty)
    (wanted, large), (found, small) = backward(plain), backward(thrifty)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, msg=key)
    kept = small / large
    assert kept < 0.35, f"{kept:.2f} of the numbers are still kept"


def test_checkpointing_is_refused_by_batch_norm():
    with pytest.raises(UsageError, match="checkpointing has no effect on resnet10"):
        use_checkpointing(network("resnet10_w8"))


@pytest.mark.parametrize("name", ["swin_micro_patch4_window7", "resnet10_c4_w8", "grid_micro"])
def test_what_is_for_images_only_says_so(name):
    for make in (build, cost):
        with pytest.raises(UsageError, match="for images only"):
            make(name, size_px=32, axes=3)
    assert build(name, size_px=32, channels=3, axes=3, slices=4).config()["slices"] == 4


@pytest.mark.parametrize("name", ["vit_micro_patch4_w32", "vit_micro_patch4_w32_conv", "resnet10_w8"])
def test_inflated_weights_answer_equal_slices_alike(name):
    """A volume whose slices are all alike: as the image, for a ViT one patch deep, for a CNN away from its borders."""
    image = volumes(1, 1, 32, 32)[:, :, 0]
    options = {"positions": "none"} if name.startswith("vit") else {"stem": "small"}
    flat = build(name, channels=2, size_px=32, options=options, seed=5).eval()
    deep = build(name, channels=2, size_px=32, axes=3, options=options, seed=6).eval()
    load_timm_state(deep, flat.state_dict())
    with torch.no_grad():
        wanted = flat(image)
        if name == "vit_micro_patch4_w32":
            found = deep(image[:, :, None].expand(-1, -1, 4, -1, -1).contiguous())
            torch.testing.assert_close(found.cls, wanted.cls, atol=1e-5, rtol=1e-4)
            return
        found = deep(image[:, :, None].expand(-1, -1, 128, -1, -1).contiguous())
    middle = found.tokens.unflatten(1, found.grid)[:, found.grid[0] // 2].flatten(1, 2)
    # The conv stem's norm is over the whole map, borders along depth among it.
    close = nn.functional.cosine_similarity(middle, wanted.tokens, dim=2).min()
    assert close > 0.99


def test_inflated_positions_are_those_of_the_image():
    flat = build("vit_micro_patch4_w32", channels=1, size_px=16, seed=5)
    deep = build("vit_micro_patch4_w32", channels=1, size_px=16, axes=3, seed=6)
    load_timm_state(deep, to_timm_state(flat))
    table = deep.positions.table.view(4, 16, 32)
    for depth in range(4):
        torch.testing.assert_close(table[depth], flat.positions.table[0])
    larger = build("vit_micro_patch4_w32", channels=1, size_px=24, axes=3, seed=7)
    load_timm_state(larger, deep.state_dict())
    assert larger.positions.table.shape == (1, 216, 32)
    with pytest.raises(ModelError, match="no counterpart in timm"):
        to_timm_state(deep)


def test_slices_are_the_image_network():
    sliced = network("vit_micro_patch4_w32", slices=4, seed=2).eval()
    flat = build("vit_micro_patch4_w32", channels=2, size_px=SIZE, options=EXAMPLES["vit_micro_patch4_w32"], seed=2)
    x = volumes(2, 12, SIZE, SIZE)
    found = sliced(x)
    wanted = torch.stack([flat.eval()(x[:, :, z]).cls for z in (1, 4, 7, 10)]).mean(dim=0)
    torch.testing.assert_close(found.cls, wanted, atol=1e-5, rtol=1e-5)
    assert found.grid == (4, 4, 4) and found.tokens.shape[1] == 64
    fresh = network("vit_micro_patch4_w32", slices=4, seed=9)
    load_timm_state(fresh, to_timm_state(flat))
    torch.testing.assert_close(fresh.eval()(x).cls, found.cls, atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match="fewer slices"):
        sliced(x[:, :, :3])
    with pytest.raises(UsageError, match="no effect on images"):
        build("resnet10", slices=4)


def test_every_family_has_an_example_or_is_refused():
    tried = {name.partition("_")[0].rstrip("0123456789") for name in EXAMPLES}
    assert tried | {"swin", "grid"} == {
        base.partition("_")[0].rstrip("0123456789") for card in CARDS for base in card.presets
    }


@pytest.mark.parametrize("name", ["resnet10_w8", "resnet50_w8", "hybrid_micro_patch4_w32", "vit_micro_patch4_w32_conv"])
@pytest.mark.parametrize("side", [8, 16])
def test_gradients_hold_nothing_that_the_memory_held_before(name, side):
    """bf16 on the CPU: torch 2.14 leaves parts of gradients unwritten where maps are of one or two voxels."""
    net, x = network(name, size_px=side), volumes(4, side, side, side)
    for size in (200, 2_000, 20_000, 200_000):
        poison = [torch.full((size,), float("nan")) for _ in range(20)]
        del poison
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(x).cls.float().square().mean()
    loss.backward()
    assert [n for n, p in net.named_parameters() if not p.grad.isfinite().all()] == []
