"""What every family of networks promises, one battery for all: a study compares them only if all keep it."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention.maps import attention_map
from saccade.base.contracts import InputSpec, Progress, View
from saccade.cost.flops import cost
from saccade.errors import ModelError
from saccade.methods.dino import Dino, DinoConfig
from saccade.models.backbones.build import build, count_parameters
from saccade.models.backbones.weights import load_model, save_model
from saccade.models.nn import attention
from saccade.models.registry import CARDS, parse

# Narrow ones, for speed; 32 px, so that local crops of 16 px leave more than one token.
EXAMPLES = {
    "vit_micro_patch8_w32": {"registers": 2, "positions": "rotary", "layer_scale": 0.1},
    "vit_micro_patch8_w32_conv": {},
    "vit_micro_patch4_w32_window3": {},
    "vit_micro_patch4_w32_neighbourhood3": {},
    "vit_micro_patch4_w32_axial": {},
    "vit_micro_patch4_w32_strided2": {},
    "hybrid_micro_patch4_w32": {},
    "hybrid_micro_patch8_w32": {"registers": 1},
    "resnet10_w8": {},
    "resnet18_w4": {"stem": "small"},
    "resnet50_w4": {},
    "resnet10_c4_w8": {},
    "resnet10_d4_w16": {},
    "resnet10_c8_w16": {},
    "swin_micro_patch2_w16_window4": {},
    "hvt_micro_patch4_w32": {},
    "grid_micro_w32": {"positions": "sincos"},
    "grid_micro_w48": {"pool": "mean"},
}
SIZE = 32
every_network = pytest.mark.parametrize("name", EXAMPLES)


def network(name: str, *, seed: int = 0):
    return build(name, channels=2, size_px=SIZE, options=EXAMPLES[name], seed=seed)


def images(count: int, *size: int, seed: int = 0) -> torch.Tensor:
    """Smooth patterns with noise: in noise alone, all images are alike."""
    generator, size = torch.Generator().manual_seed(seed), size or (SIZE, SIZE)
    coarse = torch.randn(count, 2, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size, mode="bilinear")
    return smooth + 0.3 * torch.randn(count, 2, *size, generator=generator)


def sides(name: str) -> tuple[int, int]:
    """A size that is neither square nor the one that the network was made for."""
    unit = max(8, parse(name).unit_px)
    return 2 * unit, 3 * unit


def training_side(net) -> int:
    """Half of the pixels where each of them is a token: attention is quadratic."""
    return SIZE if net.stride_px > 1 else SIZE // 2


def trained(net, steps: int) -> list[float]:
    """Losses of supervised steps, five of them to warm up, on one small batch of four classes."""
    torch.manual_seed(0)
    head = nn.Linear(net.dim, 4)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-3, weight_decay=0)
    x, labels, losses = images(8, *(training_side(net),) * 2), torch.arange(8) % 4, []
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 5)
        loss = nn.functional.cross_entropy(head(net(x).cls), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_every_architecture_has_an_example():
    """By family and block: sizes of one architecture differ in numbers only."""
    kinds = {
        (type(s), getattr(s, "stem", ""), getattr(s, "bottleneck", "")) for card in CARDS for s in card.presets.values()
    }
    found = {parse(name) for name in EXAMPLES}
    assert kinds <= {(type(s), getattr(s, "stem", ""), getattr(s, "bottleneck", "")) for s in found}


@every_network
def test_features(name):
    """Vector, tokens and grid fit together and say the size of a token."""
    net, size = network(name).eval(), sides(name)
    with torch.inference_mode():
        features = net(images(2, *size))
    assert features.grid == tuple(-(-side // net.stride_px) for side in size)
    assert features.cls.shape == (2, net.dim)
    assert features.tokens.shape == (2, features.grid[0] * features.grid[1], net.dim)
    assert features.cls.isfinite().all() and features.tokens.isfinite().all()
    assert features.tokens.std() > 1e-3 and (features.cls[0] - features.cls[1]).abs().max() > 1e-4


@every_network
def test_a_batch_is_its_images(name):
    net, x = network(name).eval(), images(2, *sides(name))
    with torch.inference_mode():
        both, single = net(x), [net(x[i : i + 1]) for i in range(2)]
    for together, alone in ((both.cls, [s.cls for s in single]), (both.tokens, [s.tokens for s in single])):
        assert (together - torch.cat(alone)).abs().max() < 1e-5 * together.abs().max()


@every_network
@pytest.mark.usefixtures("unchecked")
def test_sizes(name):
    """Every multiple of the declared unit runs; transformers refuse the others, CNNs run at any."""
    net, settings = network(name).eval(), parse(name)
    unit = settings.unit_px
    with torch.inference_mode():
        for size in ((max(16, unit), 16 * -(-unit // 16)), (3 * unit, 2 * unit), (SIZE, 5 * unit)):
            assert net(images(1, *size)).tokens.isfinite().all()
        uneven = images(1, 2 * unit + 1, 4 * unit)
        if settings.capabilities.transformer and unit > 1:
            with pytest.raises(ModelError, match=r"nearest|multiple"):
                net(uneven)
        else:
            assert net(uneven).tokens.isfinite().all()
        with pytest.raises(ModelError, match="do not fit"):
            net(torch.zeros(1, 3, SIZE, SIZE))


@every_network
def test_cost(name, monkeypatch):
    """Parameters, operations of one more image, tokens and width are those that arithmetic says."""
    monkeypatch.setattr(attention, "EXPLICIT_TOKENS_FP32", 10**9)  # torch counts no fused attention on the CPU
    net, expected = network(name).eval(), cost(name, size_px=SIZE, channels=2, options=EXAMPLES[name])
    flops = []
    for count in (1, 2):
        with FlopCounterMode(display=False) as counter:
            features = net(images(count))
        flops.append(counter.get_total_flops())
    assert count_parameters(net) == expected.parameters
    assert flops[1] - flops[0] == expected.flops
    assert (features.tokens.shape[1], net.dim) == (expected.tokens, expected.dim)


@every_network
def test_saved_and_loaded(name, tmp_path):
    net, x = network(name, seed=4), images(3)
    trained(net, 1)  # running statistics and zeros away from their start
    net.eval()
    spec = InputSpec(channels=2, size_px=SIZE, offset=0.0, scale=255.0, mean=(0.5,) * 2, std=(0.2,) * 2)
    save_model(tmp_path / "model", net, spec, about={"method": "none"})
    again = load_model(tmp_path / "model")
    assert again.spec == spec and again.backbone.config() == net.config()
    with torch.inference_mode():
        before, after = net(x), again.backbone(x)
    assert torch.equal(before.cls, after.cls) and torch.equal(before.tokens, after.tokens)


@every_network
def test_seeds_decide(name):
    first, again, other = network(name).state_dict(), network(name).state_dict(), network(name, seed=1).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@every_network
def test_supervised_training(name):
    """The loss of a batch falls, and every parameter moves."""
    net = network(name)
    start = {key: value.detach().clone() for key, value in net.named_parameters()}
    losses = trained(net, 25)
    assert min(losses[-5:]) < 0.6 * losses[0], losses
    still = [key for key, value in net.named_parameters() if torch.equal(value, start[key])]
    assert not still


@every_network
def test_dino_training(name):
    """Towards a teacher that hardly moves, on crops of two sizes, the cross-entropy falls."""
    config = DinoConfig(
        out_dim=32,
        head_hidden=64,
        bottleneck=16,
        head_norm="batch" if parse(name).capabilities.batch_norm else "none",
        teacher_temp_start=0.04,
        teacher_temp=0.04,
        momentum=0.999,
        freeze_last_fraction=0.0,
        koleo=0.0,
    )
    net = network(name)
    method = Dino(net, copy.deepcopy(net), config, seed=0)
    optimizer = torch.optim.AdamW([p for _, p in method.parameters_to_train()], lr=1e-3)
    side = training_side(net)
    crops = [("global", side), ("global", side), ("local", side // 2), ("local", side // 2)]
    views = [View(role, images(8, side, side, seed=i), torch.zeros(8, 4)) for i, (role, side) in enumerate(crops)]
    found = []
    for step in range(12):
        progress = Progress(step, 100, 0.0, 1.0)
        out = method.step(views, progress)
        optimizer.zero_grad()
        out.loss.backward()
        method.before_update(progress)
        optimizer.step()
        method.after_update(progress)
        found.append(float(out.logs["kl"]))
    assert found[-1] < 0.8 * found[1], found


@every_network
def test_where_it_looks(name):
    """A map of attention, or of the likeness of tokens, of the image's vector or of a patch."""
    net, (height, width) = network(name).eval(), sides(name)
    for query in ("cls", (height - 1, 0)):
        drawn = attention_map(net, images(1, height, width), query=query)
        assert drawn.mean.shape == drawn.grid and drawn.size_px == (height, width)
        assert torch.tensor(drawn.values).isfinite().all() and drawn.values.std() > 0
