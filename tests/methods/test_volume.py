"""Methods on volumes: the loss falls, masks are boxes, and whole runs go from arrays to a table on every network."""

import json
import shutil

import numpy as np
import pytest
import torch

from saccade.api import embed, evaluate, finetune, pretrain, resume
from saccade.augment.masks import context_and_targets, hidden_blocks, random_parts
from saccade.base import config
from saccade.base.contracts import Progress, View
from saccade.errors import ModelError, UsageError
from saccade.methods.base import DatasetFacts
from saccade.methods.mae import patchify
from saccade.methods.registry import build_method, card_of, method_names, resolve_method
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import load_model
from saccade.models.registry import parse

NETWORK, SIDE = "vit_micro_patch4_w32", 16
ON_VOLUMES = [name for name in method_names() if card_of(name).supports_volumes]


def views(name: str, count: int = 6) -> list[View]:
    """Views of volumes that are waves of different directions and lengths."""
    wanted = card_of(name).defaults
    counts = (wanted.get("views.global_count", 2), wanted.get("views.local_count", 2))
    generator, found = torch.Generator().manual_seed(0), []
    for role, number, side in (("global", counts[0], SIDE), ("local", counts[1], 8)):
        for _ in range(number):
            z, y, x = torch.meshgrid(*(torch.arange(side),) * 3, indexing="ij")
            waves = [torch.sin((z * (i % 2) + y * (i % 3) + x * (i // 3 + 1)) / 2.0) for i in range(count)]
            pixels = torch.stack(waves)[:, None]
            pixels = pixels + 0.1 * torch.randn(pixels.shape, generator=generator)
            found.append(View(role, pixels, torch.zeros(count, 6), torch.arange(count) % 2, torch.arange(count)))
    return found


def made(name: str):
    facts = DatasetFacts(
        images=64,
        batch=6,
        steps=200,
        labels=("a", "b"),
        view_px=SIDE,
        unit_px=parse(NETWORK).unit_px,
        dim=32,
        axes=3,
    )
    settings = resolve_method(name, card_of(name).config_cls(), facts)
    student = build(NETWORK, channels=1, size_px=SIDE, axes=3, seed=0)
    return build_method(name, student, lambda: build(NETWORK, channels=1, size_px=SIDE, axes=3), settings, seed=0)


@pytest.mark.parametrize("name", ON_VOLUMES)
def test_the_loss_falls(name):
    method, losses = made(name), []
    optimizer = torch.optim.AdamW([p for _, p in method.parameters_to_train()], lr=1e-3)
    for step in range(40):
        progress = Progress(step, 200, step, 200)
        out = method.step(views(name), progress)
        losses.append(float(out.logs.get("loss", out.loss.detach())))
        out.loss.backward()
        method.before_update(progress)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(progress)
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5]), losses


def test_position_is_refused_by_name():
    with pytest.raises(UsageError, match="relative_position is for images only"):
        resolve_method(
            "relative_position",
            card_of("relative_position").config_cls(),
            DatasetFacts(images=64, batch=8, steps=9, axes=3),
        )


def test_patchify_a_volume_are_its_boxes():
    volume = torch.arange(2 * 8 * 4 * 12, dtype=torch.float32).view(1, 2, 8, 4, 12)
    patches = patchify(volume, 4)
    assert patches.shape == (1, 2 * 1 * 3, 4**3 * 2)
    for number, (z, y, x) in enumerate((z, y, x) for z in (0, 4) for y in (0,) for x in (0, 4, 8)):
        box = volume[0, :, z : z + 4, y : y + 4, x : x + 4]
        assert torch.equal(patches[0, number].view(4, 4, 4, 2), box.permute(1, 2, 3, 0))


@pytest.mark.parametrize("grid", [(4, 4, 4), (2, 6, 5), (1, 3, 3)])
def test_masks_of_volumes_are_boxes_and_bounded(grid):
    items, count = torch.arange(5), int(np.prod(grid))
    kept, hidden = random_parts(grid, 0.75, seed=0, step=3, items=items)
    assert torch.equal(torch.cat([kept, hidden], dim=1).sort(dim=1).values, torch.arange(count).expand(5, -1))
    context, targets = context_and_targets(grid, seed=0, step=3, items=items)
    assert context.any(dim=1).all()
    for image in range(5):
        first = targets[image, 0]
        assert not context[image][first].any()
        for block in targets[image]:
            places = np.stack(np.unravel_index(block.numpy(), grid), axis=1)
            spans = places.max(axis=0) - places.min(axis=0) + 1
            assert np.prod(spans) == len(block)  # a whole box
    where = hidden_blocks(grid, seed=0, step=3, items=items, stream="x", prob=1.0, mask_ratio=(0.3, 0.4))
    assert where.any(dim=1).all() and where.float().mean() < 0.6


# --- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Arrays in MedMNIST's layout: large and small balls at random places, 36 to learn from and 12 to test on."""
    random, arrays = np.random.default_rng(0), {}
    places = np.stack(np.meshgrid(*(np.arange(20),) * 3, indexing="ij"))
    for split, count in (("train", 36), ("val", 6), ("test", 12)):
        labels = np.arange(count) % 2
        middles = random.uniform(7, 13, (count, 3))
        far = np.stack([np.linalg.norm(places - middle[:, None, None, None], axis=0) for middle in middles])
        bright = (far < np.where(labels, 6.0, 3.5)[:, None, None, None]) * 200
        arrays[f"{split}_images"] = (bright + random.integers(0, 40, bright.shape)).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None]
    path = tmp_path_factory.mktemp("balls") / "balls.npz"
    np.savez_compressed(path, **arrays)
    return path


SHORT = {"train.steps": 3, "train.batch": 6, "model.size_px": 16}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dino", {"model.backbone": "resnet10_w8"}),
        ("dino", {"model.backbone": NETWORK, "model.positions": "factorised", "model.attention": "window:2"}),
        ("dino", {"model.backbone": "swin_micro_patch2_w16_window4", "model.slices": 3, "views.local_px": 16}),
        ("mae", {"model.backbone": NETWORK, "train.checkpointing": True}),
        ("ijepa", {"model.backbone": NETWORK, "data.size_mm": 0.0}),
        ("dinov2", {"model.backbone": NETWORK, "model.registers": 1}),
    ],
)
def test_a_run_makes_a_model_of_volumes(balls, tmp_path, method, settings):
    run = pretrain(balls, out=tmp_path / "run", method=method, settings=SHORT | settings)
    values = config.load(run / "config.yaml")
    assert values["data"]["axes"] == 3 and values["views"]["aspect"] == [1.0, 1.0]
    loaded = load_model(run)
    assert loaded.spec.axes == 3
    table = embed(run, balls)
    assert table.features.shape == (54, loaded.backbone.dim) and np.isfinite(table.features).all()


def test_from_arrays_to_a_table(balls, tmp_path):
    """Pretrained, evaluated beside its baselines with a report, gone on from, and finetuned."""
    run = pretrain(balls, out=tmp_path / "run", settings=SHORT | {"model.backbone": NETWORK})
    found = evaluate([run], balls, out=None)
    names = {row["model"] for row in found.to_dict()["rows"]}
    assert {"random weights", "pixels", "grey histogram"} < names
    figures = json.loads((run / "figures" / "index.json").read_text())
    assert {one["kind"] for one in figures} == {"neighbours", "attention"}
    answer = finetune(run, balls, out=tmp_path / "tuned", settings={"train.steps": 4, "train.batch": 6})
    assert {row["metric"] for row in answer.rows} >= {"accuracy", "auroc"}


def test_a_resumed_run_is_the_same(balls, tmp_path):
    settings = SHORT | {"model.backbone": NETWORK, "train.steps": 6, "train.save_every": 3, "train.log_every": 1}
    whole = pretrain(balls, out=tmp_path / "whole", settings=settings)
    parted = pretrain(balls, out=tmp_path / "parted", settings=settings)
    shutil.rmtree(parted / "checkpoints" / "step-000006")
    resume(parted)
    states = [load_model(run).backbone.state_dict() for run in (whole, parted)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_weights_for_images_are_inflated(balls, tmp_path):
    """A run on images, then one on volumes that starts from its weights; and slices that take them as they are."""
    random = np.random.default_rng(0)
    images = {
        f"{split}_images": random.integers(0, 255, (n, 16, 16), np.uint8) for split, n in (("train", 12), ("test", 4))
    }
    labels = {f"{split}_labels": np.arange(n)[:, None] % 2 for split, n in (("train", 12), ("test", 4))}
    np.savez(tmp_path / "flat.npz", **images, **labels)
    flat = pretrain(tmp_path / "flat.npz", out=tmp_path / "flat", settings=SHORT | {"model.backbone": NETWORK})
    still = {"optim.lr": 0.0, "optim.weight_decay": 0.0, "optim.weight_decay_end": 0.0}
    given = SHORT | still | {"model.weights": str(flat)}
    deep = load_model(pretrain(balls, out=tmp_path / "deep", settings=given)).backbone
    kernel = load_model(flat).backbone.patch_embed.proj.weight
    torch.testing.assert_close(deep.patch_embed.proj.weight.sum(dim=2), kernel)
    sliced = load_model(pretrain(balls, out=tmp_path / "sliced", settings=given | {"model.slices": 4})).backbone
    torch.testing.assert_close(sliced.network.patch_embed.proj.weight, kernel)


def test_what_cannot_be_is_said(balls, tmp_path):
    asked = {
        "for images only": {"model.backbone": "swin_micro_patch2_window4"},
        "relative_position is for images only": {"train.method": "relative_position"},
        "masks patches": {"train.method": "mae", "model.backbone": NETWORK, "model.slices": 4},
        "hue has no effect on volumes": {"views.hue": 0.1},
        "checkpointing has no effect on resnet10": {"model.backbone": "resnet10_w8", "train.checkpointing": True},
        "not what data.axes says": {"data.axes": 2},
    }
    for number, (words, settings) in enumerate(asked.items()):
        method = settings.pop("train.method", "dino")
        with pytest.raises(UsageError, match=words):
            pretrain(balls, out=tmp_path / str(number), method=method, settings=SHORT | settings)
    with pytest.raises(UsageError, match="slices has no effect on images"):
        pretrain("synthetic:tissue?n=16&size=32", out=tmp_path / "i", settings=SHORT | {"model.slices": 2})
    run = pretrain("synthetic:tissue?n=16&size=32", out=tmp_path / "flat", settings=SHORT | {"model.backbone": NETWORK})
    with pytest.raises(ModelError, match="is a model of images"):
        embed(run, balls)
