"""The price of a run: what autograd saves, operations and peaks against torch itself, limits, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from saccade.base import config
from saccade.cli.app import app
from saccade.cost import system_memory
from saccade.cost.allocator import PIECE, Heap
from saccade.cost.alternatives import alternatives, largest_batch, smallest_patch
from saccade.cost.attention_ops import MATRICES
from saccade.cost.autograd_tape import Tape
from saccade.cost.flops import FAMILIES
from saccade.cost.method_steps import STEPS
from saccade.cost.step_memory import NETWORKS, Workload, price
from saccade.cost.vit import Weights
from saccade.cost.worked_examples import lookup, region
from saccade.errors import MemoryShort, UsageError
from saccade.methods.registry import method_names
from saccade.models.backbones.build import build
from saccade.models.registry import configured
from saccade.tasks import plan
from saccade.train.memory_check import check_memory, workload
from saccade.train.recipes import config_for

CPU = torch.device("cpu")
CASES = [
    ("vit_micro_patch8", 4, 64, 2, {}),
    ("vit_micro_patch8", 2, 128, 2, {"positions": "rotary", "registers": 2, "layer_scale": 0.1, "drop_path": 0.1}),
    ("vit_micro_patch8", 2, 64, 2, {"positions": "sincos", "pool": "mean", "norm": "post"}),
    ("vit_micro_patch8_window7", 3, 64, 2, {}),
    ("vit_micro_patch8_neighbourhood7", 2, 96, 2, {}),
    ("vit_micro_patch8_axial", 2, 64, 2, {}),
    ("vit_micro_patch8_strided4", 2, 64, 2, {}),
    ("vit_micro_patch8_conv", 3, 64, 2, {}),
    ("hybrid_micro_patch8", 3, 64, 2, {}),
    ("swin_micro_patch4_window7", 2, 96, 2, {}),
    ("hvt_micro_patch8", 3, 64, 2, {}),
    ("resnet10_w16", 3, 64, 2, {}),
    ("resnet50_w8", 2, 64, 2, {}),
    ("resnet10_c4_w16", 2, 32, 2, {}),
    ("vit_micro_patch8", 2, 32, 3, {"positions": "factorised"}),
    ("vit_micro_patch8_window2", 2, 32, 3, {}),
    ("hvt_micro_patch8", 2, 32, 3, {}),
    ("resnet10_w8", 2, 32, 3, {}),
]


def settled(method: str = "dino", *, backbone: str = "vit_micro_patch8_w32", size: int = 32, batch: int = 4, **more):
    """Sections as ``plan`` decides them, and the workload."""
    given = {"model.backbone": backbone, "model.size_px": size, "train.batch": batch, "train.device": "cpu"}
    run = config.override(config_for(method, "microscopy"), given | {"train.precision": "fp32"} | more)
    images, channels, item, run = plan.inspect_data(None, run, CPU, 2)
    run = plan.resolve_assumed(run, images, channels, CPU)
    return run, workload(run, CPU, image_item=item)


# --- against torch -----------------------------------------------------------------------------


def saved_by_torch(name, batch, size, axes, options, bf16) -> int:
    """Bytes that autograd keeps of one pass, less weights and running statistics."""
    net = build(name, channels=3, size_px=size, axes=axes, options=options).train()
    own = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
    found: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    pixels = torch.randn(batch, 3, *(size,) * axes)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
        net(pixels)  # tables are made and kept
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
    ):
        features = net(pixels)
    assert features.cls.requires_grad
    return sum(found.values())


def saved_on_tape(name, batch, size, axes, options, bf16) -> int:
    settings = configured(name, channels=3, size_px=size, axes=axes, options=options)
    tape = Tape(bf16=bf16)
    pixels = tape.tensor((batch, 3, *(size,) * axes), "views")
    vectors, _ = NETWORKS[type(settings)](tape, Weights(tape, trains=True), settings, pixels)
    tape.forget_copies()
    stack, seen, found = [vectors.node], {vectors.node}, {}
    while stack:
        node = stack.pop()
        found |= {id(storage): storage.bytes for storage in node.saved}
        new = {into for into in node.inputs if into is not None} - seen
        seen |= new
        stack += new
    return sum(found.values())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("name", "batch", "size", "axes", "options"), CASES)
def test_saves_what_autograd_saves(name, batch, size, axes, options, bf16):
    case = (name, batch, size, axes, options, bf16)
    assert saved_on_tape(*case) == pytest.approx(saved_by_torch(*case), rel=0.01)


def counted(run, load, steps=1) -> float:
    """Operations of a step of the training loop by torch's counter, whose table lacks the CPU's fused attention."""
    aten = torch.ops.aten
    own = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *a, **n: 4 * q[0] * q[1] * q[2] * k[2] * q[3],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, *a, **n: 10 * q[0] * q[1] * q[2] * k[2] * q[3]
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        plan.time_steps(run, load, CPU, rounds=steps - 1)
    return counter.get_total_flops() / steps


@pytest.mark.parametrize("method", method_names())
def test_operations_of_every_method(method):
    run, load = settled(method, size=48)
    found = counted(run, load, steps=10 if method in ("ijepa", "dinov2") else 1)
    # ijepa draws the size of its blocks anew for every step; ten of them are a rough mean on a grid of 6 x 6.
    close = 0.12 if method == "ijepa" else 0.03 if method == "dinov2" else 0.02
    assert found == pytest.approx(price(load).total_flops, rel=close)


def test_checkpointing_counts_what_is_computed_again():
    run, load = settled(size=64, **{"train.checkpointing": True, "dino.out_dim": 32})
    plain = price(load.with_(recompute=False))
    assert price(load).total_flops > 1.15 * plain.total_flops
    assert counted(run, load) == pytest.approx(price(load).total_flops, rel=0.01)
    assert price(load).peak < 0.8 * plain.peak


@pytest.mark.parametrize(
    ("name", "size"), [("vit_micro_patch8", 96), ("resnet10_w16", 64), ("hybrid_micro_patch8", 64)]
)
def test_peak_of_tensors_is_torchs(name, size):
    """The most bytes of tensors that are there at once, by torch's own record of every allocation."""
    net, pixels = build(name, size_px=size).train(), torch.randn(8, 3, size, size)

    def step():
        net(pixels).cls.square().mean().backward()
        net.zero_grad(set_to_none=True)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = np.array([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    settings = configured(name, size_px=size)
    tape = Tape()
    images = tape.tensor((8, 3, size, size), "views")
    before = tape.total
    vectors, tokens = NETWORKS[type(settings)](tape, Weights(tape, trains=True), settings, images)
    del tokens
    tape.backward(vectors)
    assert tape.peak - before == pytest.approx(changes.cumsum().max(), rel=0.04)


# --- figures that are known ---------------------------------------------------------------------


def test_the_known_case():
    """A flat ViT-S/16 on 4096 x 4096, batch 4, float32: 384.01 GiB for the attention matrices of a layer."""
    flat, fused, windows, hierarchy = region()
    assert flat.matrices == 4 * 6 * 65537**2 * 4
    assert f"{flat.matrices / 2**30:.2f}" == "384.01"
    assert fused.matrices == 0 and fused.peak < flat.peak / 50
    assert windows.matrices < flat.matrices / 1000 and windows.flops < flat.flops / 20
    assert hierarchy.matrices < 2**30 / 100 and hierarchy.peak < 2**30
    network = configured("vit_small_patch16", size_px=4096)
    load = Workload(network, "supervised", {"classes": ("a", "b")}, (1, 4096), (0, 0), 4, explicit=True)
    assert price(load).dominating == MATRICES and price(load).attention == flat.matrices


def test_look_up_table_and_projection():
    text = lookup(16, 3, 384)
    assert "256^768 = 2^6144" in text and f"{len(str(2**6144)):,} digits" in text
    assert f"{768 * 384 + 384:,} parameters" in text


# --- limits, alternatives ------------------------------------------------------------------------


def test_largest_batch_is_the_largest():
    _, load = settled(batch=8)
    limit = price(load.with_(batch=37)).peak
    found = largest_batch(load, limit)
    assert price(load.with_(batch=found)).peak <= limit < price(load.with_(batch=found + 1)).peak
    assert found >= 37 and largest_batch(load, 1000) == 0


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
    for word in ("window", "axial", "HVT", "hybrid", "patches of 16", "twice", "half batches", "fused"):
        assert word in names
    halves = next(one for one in found if "half" in one.name)
    assert halves.price.peak < price(load).peak and halves.price.total_flops == pytest.approx(
        price(load.with_(explicit=True)).total_flops, rel=0.001
    )
    assert all("window" not in one.name for one in alternatives(settled("mae", size=64)[1]))


def test_every_method_and_family_has_a_price():
    assert set(STEPS) == set(method_names()) and set(NETWORKS) == set(FAMILIES)


def test_gpu_prices_have_no_heap():
    _, load = settled()
    assert "gaps in the heap" not in price(load.with_(device="cuda")).memory


def test_heap_joins_neighbours_and_keeps_pieces_until_the_step_ends():
    heap = Heap()
    first, second = heap.take(1000), heap.take(1000)
    top = heap.top
    heap.give_back(*first)
    heap.give_back(*second)
    heap.free_pieces()
    assert heap.gaps == [(top, 0)]
    one, other = heap.take(1000), heap.take(1000)
    heap.give_back(*one)
    assert heap.top == top
    assert heap.take(1000)[0] == other[1] + PIECE  # a small object lies where the first one began


# --- memory that is there ------------------------------------------------------------------------


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
        "train.checkpointing=true",
        "--backbone",
        "saccade plan",
    ):
        assert word in text
    with pytest.raises(MemoryShort, match="smaller network"):
        check_memory(load, CPU, free=2**20)


def test_pretrain_refuses_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("saccade.train.memory_check.machine.available", lambda: 2**20)
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
        "mae",
        "microscopy",
        {"model.backbone": "vit_micro_patch8", "model.size_px": 32, "train.batch": 2},
        plan.PlanOptions(axes=3, measure=False),
    )
    assert found.price.tokens[0] == 64 and "32 x 32 x 32" in found.text()


def test_plan_wants_a_size():
    with pytest.raises(UsageError, match="--size"):
        plan.plan(None, "dino", "microscopy", {}, plan.PlanOptions(measure=False))
