"""The cost of a step: operations and peaks against real steps, extrapolation, limits, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from saccade.base import config
from saccade.base.contracts import Features, Progress, StepOutput, View
from saccade.cli.app import app
from saccade.cost import system_memory
from saccade.cost.allocator import PIECE, Heap, sums_in_place
from saccade.cost.alternatives import alternatives, largest_batch, smallest_patch
from saccade.cost.recorder import ATTENTION, FLOPS, IN_FLIGHT, OPTIMIZER, Block
from saccade.cost.step import FRAGMENTATION, IMAGES, BatchPrices, Workload, make_method, price, trace
from saccade.cost.worked_examples import lookup_table_size, region_costs
from saccade.errors import MemoryShort, UnknownCost, UsageError
from saccade.methods.base import SingleNetworkMethod
from saccade.methods.registry import card_of, method_names
from saccade.methods.supervised import SupervisedConfig
from saccade.models.backbones.build import build
from saccade.models.registry import configured
from saccade.tasks import plan
from saccade.train.memory_check import check_memory, workload
from saccade.train.recipes import config_for

CPU = torch.device("cpu")
COLOURS = 0.005
"""Making the views mixes colours by products, which torch counts and the price leaves out."""


def settled(method: str = "dino", *, backbone: str = "vit_micro_patch8_w32", size: int = 32, batch: int = 4, **more):
    """The run as ``plan`` resolves it, and the workload."""
    given = {"model.backbone": backbone, "model.size_px": size, "train.batch": batch, "train.device": "cpu"}
    run = config.override(config_for(method, "microscopy"), given | {"train.precision": "fp32"} | more)
    facts, run = plan.inspect_data(None, run, CPU, 2)
    run = plan.resolve_assumed(run, facts.images, facts.channels, CPU)
    return run, workload(run, CPU, image_item=facts.item)


def live_peak(load) -> int:
    """Bytes of all tensors at the peak, without weights and fragmentation."""
    memory = price(load).memory
    return sum(memory.values()) - memory.get(FRAGMENTATION, 0) - sum(trace(load).weights.values())


# --- against real steps --------------------------------------------------------------------------


def counted(run, load, steps=1) -> float:
    """Operations of a step of the training loop by torch's counter, whose table lacks the CPU's fused attention."""
    own = {op: FLOPS[op] for op in FLOPS if "for_cpu" in str(op)}
    with FlopCounterMode(display=False, custom_mapping={op: _by_shape(count) for op, count in own.items()}) as counter:
        plan.time_steps(run, load, CPU, rounds=steps - 1)
    return counter.get_total_flops() / steps


def _by_shape(count):
    """A count of tensors as a count of shapes, which torch's counter hands over."""
    empty = lambda shape: torch.empty(shape, device="meta") if isinstance(shape, (tuple, torch.Size)) else shape  # noqa: E731
    return lambda *shapes, **others: count(*map(empty, shapes))


@pytest.mark.parametrize("method", method_names())
def test_operations_of_every_method(method):
    run, load = settled(method, size=48)
    random = {
        "ijepa": 0.15,
        "dinov2": 0.1,
        "relative_position": 0.02,
    }  # blocks of a grid of 6 x 6, drawn anew in every step
    close = next((tolerance for name, tolerance in random.items() if name == load.method), COLOURS)
    assert price(load).total_flops == pytest.approx(counted(run, load, steps=4 if close > 0.02 else 1), rel=close)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vit_micro_patch8_window4", 64),
        ("resnet10_w16", 64),
        ("hybrid_micro_patch8", 64),
        ("swin_micro_patch4_window7", 64),
        ("hvt_micro_patch8", 64),
        ("resnet10_c4_w16", 32),
    ],
)
def test_operations_of_every_family(backbone, size, precision):
    run, load = settled("same_image", backbone=backbone, size=size, **{"train.precision": precision})
    assert price(load).total_flops == pytest.approx(counted(run, load), rel=COLOURS)


def test_checkpointing_counts_what_is_computed_again():
    run, load = settled(size=64, **{"train.checkpointing": True, "dino.out_dim": 32})
    stored = price(load.with_(recompute=False))
    assert price(load).total_flops > 1.15 * stored.total_flops
    assert counted(run, load) == pytest.approx(price(load).total_flops, rel=COLOURS)
    assert live_peak(load) < 0.8 * live_peak(load.with_(recompute=False))


def real_peak(load) -> int:
    """Most bytes of tensors at a time, but for weights, by torch's own record of the allocations of a real step."""
    method = make_method(load)
    step, views = load.make_step(load, method), []
    for role, (count, side) in (("global", load.global_views), ("local", load.local_views)):
        for _ in range(count):
            pixels = torch.randn(load.batch, 3, side, side)
            items = torch.arange(load.batch)
            views.append(View(role, pixels, torch.zeros(load.batch, 4), items % 2, items))
    progress = Progress(1, 2, 0.5, 1.0)
    step([views], progress)
    for parameter in method.parameters():
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step([views], progress)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = np.array([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    images = 3 * load.batch * load.image_px**2
    state = 8 * sum(p.numel() for _, p in method.parameters_to_train() if p.requires_grad)
    return int(changes.cumsum().max()) + state + images + sum(view.pixels.nbytes for view in views)


@pytest.mark.parametrize(
    ("method", "backbone", "size", "more"),
    [
        ("dino", "vit_micro_patch8", 64, {}),
        ("dino", "vit_micro_patch8", 64, {"train.precision": "bf16"}),
        ("dino", "vit_micro_patch8", 96, {"train.checkpointing": True}),
        ("supervised", "vit_micro_patch8", 192, {}),  # fused attention
        ("supervised", "vit_micro_patch8_neighbourhood7", 96, {}),
        ("supervised", "resnet10_w16", 64, {"train.precision": "bf16"}),
        ("lejepa", "hybrid_micro_patch8", 64, {}),
        ("moco_v3", "swin_micro_patch4_window7", 64, {}),
        ("mae", "vit_micro_patch8", 96, {}),
        ("dinov2", "vit_micro_patch8", 64, {}),
    ],
)
def test_peak_is_that_of_a_real_step(method, backbone, size, more):
    _, load = settled(method, backbone=backbone, size=size, batch=8, **more)
    assert live_peak(load) == pytest.approx(real_peak(load), rel=0.05)


class TwoLayers(nn.Module):
    """A third party's backbone: it draws numbers, branches on values and makes tables, as anybody's may."""

    def __init__(self, dim: int = 32):
        super().__init__()
        self.dim, self.unit_px = dim, 8
        self.project = nn.Conv2d(3, dim, 8, stride=8)
        self.block = nn.TransformerEncoderLayer(dim, 2, 4 * dim, batch_first=True)

    def forward(self, pixels):
        tokens = self.project(pixels).flatten(2).transpose(1, 2)
        if tokens.mean() > 1e6:
            raise ValueError("exploded")
        tokens = self.block(tokens[:, torch.randperm(tokens.shape[1])])
        return Features(cls=tokens.mean(dim=1), tokens=tokens, grid=(pixels.shape[-2] // 8, pixels.shape[-1] // 8))


class Norm(SingleNetworkMethod):
    """A third party's method: image vectors of length 1."""

    def __init__(self, network, config, *, seed):
        super().__init__()
        self.network, self.head = network, nn.Linear(network.dim, 64)

    def step(self, views, progress):
        vectors = self.head(self.network(torch.cat([view.pixels for view in views])).cls)
        chosen = vectors[vectors.norm(dim=1) > 1]
        return StepOutput((vectors.norm(dim=1) - 1).square().mean() + 0 * chosen.sum(), {})


class Undecided(Norm):
    """A method that cannot run without values."""

    def step(self, views, progress):
        return StepOutput(self.head(torch.unique(views[0].pixels)[None, : self.network.dim]).mean(), {})


@pytest.fixture
def third_party(monkeypatch):
    """A method and a backbone that nobody has priced; returns a workload of them."""

    def load(cls):
        card = dataclasses.replace(card_of("supervised"), name="norm", cls=cls, uses_labels=False)
        monkeypatch.setattr("saccade.cost.step.card_of", lambda name: card)
        monkeypatch.setattr(
            "saccade.cost.step.build_method", lambda name, net, teacher, config, seed: cls(net, None, seed=0)
        )
        monkeypatch.setattr("saccade.cost.step.build_network", lambda settings, slices: TwoLayers())
        network = configured("resnet10_w8", size_px=32)
        return Workload(network, "norm", SupervisedConfig(), (2, 32), (0, 0), 8, image_px=32)

    return load


def test_a_third_partys_method_and_backbone_have_a_price(third_party):
    load = third_party(Norm)
    cost = price(load)
    rows, tokens, dim = 2 * 8, 16, 32
    layer = 2 * rows * tokens * (12 * dim * dim + 2 * tokens * dim)
    forward = 2 * rows * tokens * 3 * 64 * dim + layer + 2 * rows * dim * 64
    # Backward twice the forward; the projection needs no gradient of the pixels.
    assert cost.total_flops == pytest.approx(3 * forward - 2 * rows * tokens * 3 * 64 * dim, rel=0.02)
    assert cost.tokens == (16, 0) and cost.learned == cost.parameters + 33 * 64
    assert "activations of TwoLayers" in cost.memory and cost.memory[OPTIMIZER] == pytest.approx(
        8 * cost.learned, rel=0.01
    )


def test_what_cannot_be_traced_can_be_trained(third_party):
    load = third_party(Undecided).with_(batch=6)  # the trace of equal workloads is kept
    with pytest.raises(UnknownCost, match="norm with resnet10_w8"):
        price(load)
    check_memory(load, CPU, free=1)


def test_tracing_leaves_no_trace():
    """Tables that networks cache, and the random state, are those of a process that never traced."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    _, load = settled(backbone="vit_micro_patch8_neighbourhood3", size=64)
    price(load)
    assert torch.equal(torch.rand(2), expected)
    network = build("vit_micro_patch8_neighbourhood3", size_px=64)
    assert type(network(torch.randn(1, 3, 64, 64)).cls.detach()) is torch.Tensor


def test_micro_batches_cost_the_same():
    _, load = settled()
    one, four = price(load), price(load.with_(accumulate=4))
    assert four.total_flops == 4 * one.total_flops
    assert live_peak(load.with_(accumulate=4)) == live_peak(load.with_(accumulate=2)) > live_peak(load)


def test_other_batches_are_extrapolated_exactly():
    _, load = settled(backbone="vit_micro_patch8_window2", size=64, batch=4)
    prices = BatchPrices(load)
    for batch in (2, 12, 33):
        real = price(load.with_(batch=batch))
        assert prices(batch).total_flops == real.total_flops
        assert prices(batch).peak == pytest.approx(real.peak, rel=0.02)


# --- known figures ---------------------------------------------------------------------


def test_the_known_case():
    """A flat ViT-S/16 on 4096 x 4096, batch 4, float32: 384.01 GiB for the attention matrices of a layer."""
    flat, fused, windows, hierarchy = region_costs()
    assert flat.matrices == 4 * 6 * 65537**2 * 4
    assert f"{flat.matrices / 2**30:.2f}" == "384.01"
    assert fused.matrices == 0 and fused.peak < flat.peak / 50
    assert windows.matrices < flat.matrices / 1000 and windows.flops < flat.flops / 20
    assert hierarchy.matrices < 2**30 / 100 and hierarchy.peak < 2**30
    network = configured("vit_small_patch16", size_px=4096)
    load = Workload(network, "supervised", SupervisedConfig(classes=("a", "b")), (1, 4096), (0, 0), 4, explicit=True)
    cost = price(load)
    assert cost.dominating == ATTENTION and cost.attention == flat.matrices
    assert cost.memory[FRAGMENTATION] < 0.2 * cost.peak


def test_look_up_table_and_projection():
    text = lookup_table_size(16, 3, 384)
    assert "256^768 = 2^6144" in text and f"{len(str(2**6144)):,} digits" in text
    assert f"{768 * 384 + 384:,} parameters" in text


# --- limits, alternatives ------------------------------------------------------------------------


def test_largest_batch_is_the_largest():
    _, load = settled(batch=8)
    limit = price(load.with_(batch=37)).peak
    found = largest_batch(load, limit)
    assert price(load.with_(batch=found)).peak <= limit < price(load.with_(batch=round(1.1 * found))).peak
    assert 35 <= found <= 39 and largest_batch(load, 1000) == 0


def test_smallest_patch_is_the_smallest():
    _, load = settled(backbone="vit_micro_patch16_w32", size=64)
    fine = smallest_patch(load, price(load).peak)
    assert fine is not None and fine <= 16
    assert smallest_patch(load, 10**12) == 1
    assert smallest_patch(load, 1000) is None
    assert smallest_patch(settled(backbone="resnet10_w8")[1], 10**12) is None


def test_alternatives_are_sorted_and_do_what_they_say():
    _, load = settled(backbone="vit_tiny_patch8", size=128)
    found = alternatives(load.with_(explicit=True))
    costs = [one.price.total_flops for one in found]
    assert costs == sorted(costs)
    names = " ".join(one.name for one in found)
    for word in ("window", "axial", "HVT", "hybrid", "patches of 16", "recomputed", "half batches", "fused"):
        assert word in names
    halves = next(one for one in found if "half" in one.name)
    assert halves.price.peak < price(load).peak and halves.price.total_flops == pytest.approx(
        price(load.with_(explicit=True)).total_flops, rel=0.001
    )
    assert all("window" not in one.name for one in alternatives(settled("masked", size=64)[1]))


def test_gpu_prices_have_no_heap():
    _, load = settled()
    assert FRAGMENTATION not in price(load.with_(device="cuda")).memory


def test_heap_joins_neighbours_and_keeps_pieces_until_the_step_ends():
    heap = Heap()
    first, second = heap.allocate(1000), heap.allocate(1000)
    top = heap.top
    heap.free(*first)
    heap.free(*second)
    heap.free_pieces()
    assert heap.free_chunks == [(top, 0)]
    one, other = heap.allocate(1000), heap.allocate(1000)
    heap.free(*one)
    assert heap.top == top
    assert heap.allocate(1000)[0] == other[1] + PIECE  # a small object is where the first one began


def test_gradients_are_added_in_place():
    first, second = Block(100, IN_FLIGHT, backward=True), Block(100, IN_FLIGHT, backward=True)
    total = Block(100, IN_FLIGHT, backward=True, is_sum=True)
    events = [(first, True), (second, True), (total, True), (first, False), (second, False), (total, False)]
    assert sums_in_place(events) == [(first, True), (second, True), (second, False), (first, False)]


# --- available memory ------------------------------------------------------------------------


def test_amounts_of_memory():
    assert system_memory.parse_size("12GB") == 12 * 2**30 and system_memory.parse_size("1.5 MiB") == 1.5 * 2**20
    for wrong in ("much", "-1GB", "0"):
        with pytest.raises(UsageError):
            system_memory.parse_size(wrong)


def test_a_control_group_limits_what_is_available(tmp_path):
    info, limit, used, stat = (tmp_path / name for name in ("info", "max", "current", "stat"))
    info.write_text("MemTotal: 1000 kB\nMemAvailable:     800 kB\n")
    stat.write_text("anon 1\ninactive_file 1000\n")
    used.write_text("101000\n")
    groups = ((limit, used, stat),)
    for allowed, expected in (("max", 800 * 1024), ("200000", 100_000), ("50000", 0)):
        limit.write_text(allowed)
        assert system_memory.available(info, groups) == expected
    assert system_memory.available(tmp_path / "none", groups) is None


# --- the gate ------------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_with_what_would():
    _, load = settled(backbone="vit_tiny_patch8", size=128, batch=64)
    peak = price(load).peak
    check_memory(load, CPU, free=peak)
    with pytest.raises(MemoryShort) as caught:
        check_memory(load, CPU, free=peak // 2)
    text = str(caught.value)
    for word in (
        "does not fit",
        "--batch",
        "train.accumulate",
        "--backbone",
        "saccade plan",
    ):
        assert word in text
    with pytest.raises(MemoryShort, match="smaller network"):
        check_memory(load, CPU, free=2**20)


def test_pretrain_refuses_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("saccade.train.memory_check.system_memory.available", lambda: 2**20)
    words = [
        "pretrain",
        "synthetic:tissue?n=16&size=32",
        "--out",
        str(tmp_path / "run"),
        "--size",
        "32",
        "--steps",
        "2",
    ]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, MemoryShort) and not (tmp_path / "run/metrics.jsonl").exists()


# --- the command -----------------------------------------------------------------------------------


def test_plan_of_the_known_case():
    words = ["plan", "--backbone", "vit_small_patch16", "--size", "4096", "--batch", "4", "--attention", "explicit"]
    words += ["--precision", "fp32"]
    words += ["--memory", "24GB", "--method", "supervised", "--no-measure"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("384.01 GiB", "DOES NOT FIT", "65,536", "2^6144", "window attention"):
        assert word in result.output


def test_plan_of_data_as_json():
    words = ["plan", "synthetic:tissue?n=60&size=32", "--backbone", "vit_micro_patch8_w32", "--size", "32", "--json"]
    result = CliRunner().invoke(app, [*words, "--batch", "8"], catch_exceptions=False)
    found = json.loads(result.output)
    assert found["tokens"]["global"] == 16 and 0 < found["images"] <= 60
    assert found["flops"]["epoch"] == pytest.approx(found["flops"]["step"] * found["images"] / 8, rel=0.01)
    assert found["memory"]["peak"] >= found["memory"]["bare_process"] > 2**27
    assert found["seconds"]["step"] > 0 and found["disk"]["checkpoints"] > 12 * found["parameters"]
    assert found["largest_batch"] >= 8 and [a["flops"] for a in found["alternatives"]]


def test_a_damaged_first_image_stops_no_plan(tmp_path):
    for number in range(3):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "0.png").write_bytes(b"no picture")
    options = plan.PlanOptions(measure=False)
    assert plan.plan(tmp_path, "dino", "microscopy", {"model.backbone": "vit_micro_patch8"}, options).images == 3


def test_plan_of_volumes():
    found = plan.plan(
        None,
        "masked",
        "microscopy",
        {"model.backbone": "vit_micro_patch8", "model.size_px": 32, "train.batch": 2},
        plan.PlanOptions(axes=3, measure=False),
    )
    assert found.price.tokens[0] == 64 and "32 x 32 x 32" in found.text()


def test_plan_wants_a_size():
    with pytest.raises(UsageError, match="--size"):
        plan.plan(None, "dino", "microscopy", {}, plan.PlanOptions(measure=False))


def test_the_plan_knows_that_narrow_images_pad_a_batch(tmp_path):
    """One wide and one tall image: a batch is padded to 8 times the shorter side on both axes, and not more."""
    for number, sides in enumerate([(24, 24), (24, 24), (24, 3000), (3000, 24)]):
        Image.new("RGB", sides, (number, 0, 0)).save(tmp_path / f"{number}.png")
    settings = {"model.backbone": "vit_micro_patch8_w8", "model.size_px": 16, "train.batch": 4, "train.device": "cpu"}
    found = plan.plan(tmp_path, "dino", "microscopy", settings, plan.PlanOptions(measure=False))
    side = 8 * found.load.image_px
    assert found.load.padded_px == (side, side) and found.to_dict()["padded_px"] == [side, side]
    assert f"a batch is padded to {side} x {side} px" in found.text()
    even = price(found.load.with_(image_sides=()))
    assert found.price.memory[IMAGES] == 64 * even.memory[IMAGES]
