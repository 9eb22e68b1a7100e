"""The automatic choice: what the data say about orientation, every rule of the table, and that given names stay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml

import saccade
from saccade.train.auto import (
    DataFacts,
    Names,
    choose,
    choose_backbone,
    choose_method,
    choose_recipe,
    differs_from_mirror,
)

FACTS = DataFacts(2000, 2, grid=False, upright=False, handed=False, device="cpu", minutes=3.0)


def with_(**changes) -> DataFacts:
    return dataclasses.replace(FACTS, **changes)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_mean_difference_from_the_mirror_image_is_seen_and_chance_is_not(axis):
    generator = np.random.default_rng(axis)
    noise = generator.normal(size=(200, 16, 16))
    assert not differs_from_mirror(noise, axis)
    ramp = np.linspace(-1, 1, 16)
    assert differs_from_mirror(noise + (ramp[:, None] if axis == 1 else ramp[None]), axis)


def test_false_alarms_are_rare():
    generator = np.random.default_rng(0)
    alarms = [differs_from_mirror(generator.normal(size=(60, 8, 8)), 1) for _ in range(300)]
    assert sum(alarms) <= 9


@pytest.mark.parametrize(
    ("facts", "method", "backbone", "recipe"),
    [
        (FACTS, "lejepa", "resnet10_w32", "microscopy,short"),
        (with_(upright=True), "lejepa", "resnet10_w32", "natural,short"),
        (with_(upright=True, handed=True), "lejepa", "resnet10_w32", "xray,short"),
        (with_(axes=3), "lejepa", "resnet10_w32", "microscopy,short"),
        (with_(minutes=None), "lejepa", "resnet10_w32", "microscopy,short"),
        (with_(minutes=600.0), "lejepa", "resnet10_w32", "microscopy"),
        (with_(grid=True), "dino", "grid_micro", "microscopy"),
        (with_(device="cuda", images=200_000, minutes=None), "dino", "vit_small_patch16", "microscopy"),
        (with_(device="cuda"), "lejepa", "resnet18", "microscopy"),
    ],
)
def test_the_rules(facts, method, backbone, recipe):
    chosen = choose_method(facts, pretrained=False)
    assert chosen.name == method and chosen.reason
    assert choose_backbone(facts, method).name == backbone
    assert choose_recipe(facts).name == recipe


def test_a_method_that_hides_patches_gets_a_vit():
    assert choose_backbone(FACTS, "mae").name == "vit_micro_patch8"


@pytest.fixture
def upright(tmp_path):
    """Photographs with a bright sky."""
    from PIL import Image

    for i in range(80):
        pixels = np.random.default_rng(i).integers(0, 120, (40, 40, 3))
        pixels[:15] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_the_choice_is_printed_kept_and_names_stay(upright, tmp_path):
    console = saccade.Quiet()
    settings = {"train.steps": 2, "train.batch": 8, "model.size_px": 32}
    run = saccade.pretrain(upright, out=tmp_path / "run", settings=settings, console=console)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train"]["method"] == "lejepa" and config["model"]["backbone"] == "resnet10_w32"
    assert config["views"]["vflip"] is False
    said = "\n".join(console.messages)
    for text in ("method lejepa", "backbone resnet10_w32", "recipe natural,short", "runner-up"):
        assert text in said and text in config["train"]["chosen"]
    named = choose(Names("mae", "vit_micro_patch8", "grey"), None, "cpu", {})
    assert named == Names("mae", "vit_micro_patch8", "grey")
    # Settings of a method name it.
    source = saccade.open_source(upright)
    assert choose(Names("auto", None, "auto"), source, "cpu", {"dino.out_dim": 64}).method == "dino"


@pytest.mark.parametrize(("recipe", "looked_at"), [("short", 1), ("auto", 40)])
def test_images_are_read_for_their_orientation_only_where_a_recipe_is_chosen(recipe, looked_at, monkeypatch):
    source = saccade.open_source("synthetic:tissue?n=40&size=32")
    read, real = [], source.read
    monkeypatch.setattr(source, "read", lambda index: read.append(index) or real(index))
    assert choose(Names("auto", None, recipe), source, "cpu", {}).backbone == "resnet10_w32"
    assert len(set(read)) == looked_at


def test_cifar_is_upright_and_tissue_is_not(shared_data):
    def recipe_of(name: str) -> str:
        source = saccade.open_source(shared_data / name)
        return choose(Names("lejepa", "resnet10_w32", "auto"), source, "cpu", {}).recipe

    assert recipe_of("natural/cifar10-jpeg.tar.xz") == "natural,short"
    assert recipe_of("histology/lc25000-lung-224.zip") == "microscopy,short"
    assert recipe_of("xray/pneumoniamnist-28-balanced.npz") == "xray,short"
