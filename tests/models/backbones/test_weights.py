"""Weights in and out: exact round trips, official layouts, and messages that name the fault."""

import argparse
import json
import os
import pickle

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from saccade.base import run_folder
from saccade.base.contracts import InputSpec
from saccade.errors import ModelError, StorageError, UsageError
from saccade.models.backbones import weights
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import load_dino_state, load_model, load_timm_state, save_model, to_timm_state

SPEC = InputSpec(2, 32, 10.0, 4000.0, (0.4, 0.5), (0.2, 0.3), grey=False)


@pytest.fixture(scope="module")
def peer():
    """A timm ViT with random weights, its class token and LayerScale visible."""
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
    torch.nn.init.normal_(net.cls_token)
    return net


def same_features(ours, theirs, size=64, first=1):
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found, expected = ours(x), theirs.forward_features(x)
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.tokens, expected[:, first:], atol=1e-5, rtol=1e-5)


# --- our own folder -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_micro_patch8", {"registers": 2, "layer_scale": 0.1}),
        ("vit_micro_patch8_conv", {"positions": "rotary", "norm": "post"}),
        ("resnet10_w8", {}),
    ],
)
def test_saved_and_loaded_exactly(tmp_path, name, options):
    net = build(name, channels=2, size_px=32, options=options, seed=3)
    net(torch.randn(4, 2, 32, 32))  # running statistics of the CNN move
    net.eval()
    about = {"method": "dino", "step": 7, "config": {"train": {"seed": 3}}}
    save_model(tmp_path / "run" / "model", net, SPEC, about=about)
    x = torch.randn(2, 2, 32, 32)
    for model in ("run", "run/model", "run/model/model.safetensors"):
        loaded = load_model(tmp_path / model)
        assert loaded.spec == SPEC and loaded.name == f"dino {name}" and not loaded.backbone.training
        assert loaded.backbone.config() == net.config()
        with torch.inference_mode():
            assert torch.equal(loaded.backbone(x).tokens, net(x).tokens)
    folder = tmp_path / "run" / "model"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "digests.json", "model.safetensors"]
    assert run_folder.read_json(folder / "config.json")["about"] == about
    card = (folder / "README.md").read_text()
    assert name in card and "load_model" in card and "4000" in card and '"step": 7' in card


def test_saving_again_replaces_and_a_full_disk_keeps_the_old(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    first, second = (build("resnet10_w8", channels=2, size_px=32, seed=s).eval() for s in (1, 2))
    save_model(folder, first, SPEC, about={})
    save_model(folder, second, SPEC, about={})
    assert torch.equal(load_model(folder).backbone.conv1.weight, second.conv1.weight)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        save_model(folder, first, SPEC, about={})
    assert torch.equal(load_model(folder).backbone.conv1.weight, second.conv1.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_damaged_foreign_and_newer_folders_are_named(tmp_path):
    folder = tmp_path / "model"
    save_model(folder, build("resnet10_w8", channels=2, size_px=32), SPEC, about={})
    config = run_folder.read_json(folder / "config.json")
    run_folder.write_json(folder / "config.json", config | {"saccade_format": 99})
    with pytest.raises(ModelError, match="newer"):
        load_model(folder)
    (folder / "digests.json").unlink()
    wrong = config["backbone"] | {"name": "resnet10_w16"}
    run_folder.write_json(folder / "config.json", config | {"backbone": wrong})
    with pytest.raises(ModelError, match=r"conv1.weight \(8, 2, 3, 3\) instead of \(16, 2, 3, 3\)"):
        load_model(folder)
    run_folder.write_json(folder / "config.json", config)
    (folder / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ModelError, match=r"model.safetensors is not a readable"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({"architecture": "vit"}))
    with pytest.raises(ModelError, match="was not written by saccade"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="no model in"):
        load_model(tmp_path)


# --- layouts of others --------------------------------------------------------------------------


def dino_layouts(state):
    head = {"head.mlp.0.weight": torch.zeros(2, 2)}
    inner = {f"backbone.{k}": v for k, v in state.items()} | head
    wrong = {f"module.backbone.{k}": v + 1 for k, v in state.items()} | {"module.head.mlp.0.weight": torch.ones(1)}
    arguments = argparse.Namespace(arch="vit_tiny", patch_size=16)
    return {
        "plain": state,
        "teacher": {"student": wrong, "teacher": inner, "epoch": 3, "args": arguments},
        "student": {"student": {f"module.{k}": v for k, v in inner.items()}, "epoch": 3},
        "dinov2": state | {"mask_token": torch.zeros(1, 192)},
        "timm with a head": state | {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)},
    }


@pytest.mark.parametrize("layout", ["plain", "teacher", "student", "dinov2", "timm with a head"])
@pytest.mark.parametrize("suffix", ["", "@vit_tiny_patch16"])
def test_official_dino_files(tmp_path, peer, layout, suffix):
    torch.save(dino_layouts(peer.state_dict())[layout], tmp_path / "dino.pth")
    loaded = load_model(f"{tmp_path / 'dino.pth'}{suffix}")
    assert loaded.backbone.name == "vit_tiny_patch16" and loaded.name == "dino"
    assert loaded.spec == InputSpec(3, 64, 0.0, 255.0, weights.IMAGENET_MEAN, weights.IMAGENET_STD)
    same_features(loaded.backbone, peer)


def test_official_dinov2_with_registers(tmp_path):
    """Their register_tokens, and a position for the class token but none for the registers."""
    torch.manual_seed(0)
    net = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=56).eval()
    for name, p in net.named_parameters():
        if name.endswith(("gamma", "token")):
            torch.nn.init.normal_(p)
    state = net.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    position = torch.randn(1, 1, 384)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    torch.save(state, tmp_path / "reg4.pth")
    loaded = load_model(tmp_path / "reg4.pth")
    assert loaded.backbone.config()["options"]["registers"] == 4
    same_features(loaded.backbone, net, size=56, first=5)


def test_safetensors_and_resnet_files(tmp_path):
    net = timm.create_model("resnet18")
    safetensors.torch.save_file(net.state_dict(), tmp_path / "r18.safetensors")
    loaded = load_model(tmp_path / "r18.safetensors")
    assert loaded.backbone.name == "resnet18" and loaded.spec.size_px == 224
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = net.eval().forward_features(x).mean((2, 3))
        torch.testing.assert_close(loaded.backbone(x).cls, expected, atol=1e-5, rtol=1e-5)


def test_one_channel_takes_the_sum_of_three(tmp_path, peer):
    torch.save(peer.state_dict(), tmp_path / "dino.pth")
    grey, colour = (load_model(tmp_path / "dino.pth", channels=c) for c in (1, 3))
    assert grey.spec.channels == 1 and grey.spec.mean == pytest.approx([sum(weights.IMAGENET_MEAN) / 3])
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected = colour.backbone(x.expand(1, 3, 64, 64)).cls
        torch.testing.assert_close(grey.backbone(x).cls, expected, atol=1e-4, rtol=1e-4)


def test_own_state_into_another_size_and_dino_into_a_network(peer):
    """What training from given weights does: positions are resized, everything else is copied."""
    old = build("vit_micro_patch8", size_px=32, seed=1)
    new = build("vit_micro_patch8", size_px=64, seed=2)
    load_timm_state(new, old.state_dict())
    assert new.positions.table.shape == (1, 64, 128) and torch.equal(new.cls_token, old.cls_token)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():  # the table resized once, or at every call
        torch.testing.assert_close(new(x).cls, old(x).cls, atol=1e-5, rtol=1e-5)
    tiny = build("vit_tiny_patch16", size_px=64)
    load_dino_state(tiny, dino_layouts(peer.state_dict())["teacher"])
    same_features(tiny.eval(), peer)


# --- to timm ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"layer_scale": 0.1}, {"registers": 3}, {"positions": "sincos"}, {"positions": "none"}]
)
def test_timm_loads_the_export_strictly(options):
    net = build("vit_micro_patch8", size_px=32, options=options, seed=1).eval()
    registers = options.get("registers", 0)
    theirs = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=128,
        depth=6,
        num_heads=4,
        num_classes=0,
        init_values=options.get("layer_scale"),
        reg_tokens=registers,
        no_embed_class=registers > 0,
    ).eval()
    theirs.load_state_dict(to_timm_state(net), strict=True)
    same_features(net, theirs, size=32, first=1 + registers)
    if "positions" not in options:
        back = build("vit_micro_patch8", size_px=32, options=options, seed=2).eval()
        load_timm_state(back, to_timm_state(net))
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in back.state_dict().items())


def test_timm_loads_the_exported_resnet_strictly():
    net = build("resnet18").eval()
    theirs = timm.create_model("resnet18", num_classes=0).eval()
    theirs.load_state_dict(to_timm_state(net), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(net(x).cls, theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_micro_patch8", {"norm": "post"}),
        ("vit_micro_patch8", {"positions": "rotary"}),
        ("vit_micro_patch8_conv", {}),
        ("resnet10_w8", {}),
        ("resnet18", {"stem": "small"}),
    ],
)
def test_what_timm_does_not_have_is_refused(name, options):
    with pytest.raises(ModelError, match="no counterpart in timm"):
        to_timm_state(build(name, size_px=32, options=options))


# --- names and faults ---------------------------------------------------------------------------


def test_random_names():
    one, two, other = (load_model("random:vit_micro_patch8", channels=2, size_px=45, seed=s) for s in (1, 1, 2))
    assert one.spec.size_px == 40 and one.spec.channels == 2 and one.name == "random:vit_micro_patch8"
    assert torch.equal(one.backbone.cls_token, two.backbone.cls_token)
    assert not torch.equal(one.backbone.cls_token, other.backbone.cls_token)
    assert load_model("random:resnet10_w8", size_px=45).backbone.config()["size_px"] == 45
    assert load_model("random:vit_micro_patch16", size_px=9).spec.size_px == 16
    with pytest.raises(UsageError, match="did you mean"):
        load_model("random:vit_micro_pach8")


def test_timm_names(monkeypatch, peer):
    asked = []

    def pretrained(name, *, pretrained, num_classes):
        asked.append((name, pretrained))
        return peer

    monkeypatch.setattr(timm, "create_model", pretrained)
    loaded = load_model("timm:vit_tiny_patch16_224.augreg_in21k")
    assert asked == [("vit_tiny_patch16_224.augreg_in21k", True)]
    assert loaded.name == "timm:vit_tiny_patch16_224.augreg_in21k"
    assert loaded.spec.mean == tuple(peer.pretrained_cfg["mean"]) and loaded.spec.scale == 255.0
    same_features(loaded.backbone, peer)
    with pytest.raises(UsageError, match="architecture of saccade"):
        load_model("timm:convnext_tiny")

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"could not provide(.|\n)*no route(.|\n)*FILE@resnet50"):
        load_model("timm:resnet50.a1_in1k")


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="model not found"):
        load_model(tmp_path / "nothing.pth")
    with pytest.raises(UsageError, match="random:vit_tiny_patch8 has"):
        load_model("vit_tiny_patch8")
    with pytest.raises(ModelError, match="no model in"):
        load_model(tmp_path)


class Trap:
    """What a hostile file would run on opening."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran code')",))


def test_files_that_are_not_weights(tmp_path, peer):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"teacher": Trap()}, protocol=2))
    torch.save({"a": Trap()}, tmp_path / "trap2.pth")
    torch.save(peer.state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:100_000])
    for name in ("text.pth", "trap.pth", "trap2.pth", "cut.pth"):
        with pytest.raises(ModelError, match=f"{name} is not a readable"):
            load_model(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="does not contain a state dict"):
        load_model(tmp_path / "list.pth")
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other.pth(.|\n)*cannot infer the architecture"):
        load_model(tmp_path / "other.pth")


def test_wrong_shapes_and_keys_are_named(tmp_path, peer):
    state = peer.state_dict()
    torch.save(state, tmp_path / "dino.pth")
    with pytest.raises(ModelError, match=r"dino.pth(.|\n)*patch_embed.proj.weight \(192, 3, 16, 16\) instead of"):
        load_model(f"{tmp_path / 'dino.pth'}@vit_tiny_patch8")
    with pytest.raises(ModelError, match="not those of resnet50"):
        load_model(f"{tmp_path / 'dino.pth'}@resnet50")
    with pytest.raises(UsageError, match="did you mean"):
        load_model(f"{tmp_path / 'dino.pth'}@vit_tinny_patch16")
    net = build("vit_tiny_patch16", size_px=64)
    missing = {k: v for k, v in state.items() if k != "blocks.3.mlp.fc1.bias"}
    with pytest.raises(ModelError, match=r"missing: blocks.3.mlp.fc1.bias"):
        load_timm_state(net, missing)
    with pytest.raises(ModelError, match=r"superfluous: blocks.12.extra"):
        load_timm_state(net, state | {"blocks.12.extra": torch.zeros(1)})
    with pytest.raises(ModelError, match="square"):
        load_timm_state(net, state | {"pos_embed": torch.zeros(1, 12, 192)})
    with pytest.raises(ModelError, match=r"pos_embed: \(1, 17, 100\)"):
        load_timm_state(net, state | {"pos_embed": torch.zeros(1, 17, 100)})
    with pytest.raises(ModelError, match="superfluous: pos_embed"):
        load_timm_state(build("vit_tiny_patch16", size_px=64, options={"positions": "rotary"}), state)
    deep = {k.replace("blocks.11.", "blocks.12."): v for k, v in state.items()}
    torch.save(deep, tmp_path / "deep.pth")
    with pytest.raises(ModelError, match="width 192, 13 layers"):
        load_model(tmp_path / "deep.pth")


def test_a_bare_file_of_ours_asks_for_its_folder(tmp_path):
    net = build("vit_micro_patch8_conv", size_px=32)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "alone.safetensors")
    with pytest.raises(ModelError, match=r"by its folder"):
        load_model(tmp_path / "alone.safetensors")
