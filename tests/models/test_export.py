"""Export: what other programs load answers as the model does; what they do not have is refused."""

import json

import pytest
import torch
from typer.testing import CliRunner

import saccade
from saccade.base.contracts import InputSpec
from saccade.cli.app import app
from saccade.errors import MissingDependency, ModelError, UsageError
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import fingerprint, load_model, save_model

SPEC = InputSpec(3, 32, 0.0, 255.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def saved(folder, name, **options):
    """A model of random weights whose running statistics and tokens are not those of a fresh one."""
    net = build(name, size_px=32, options=options, seed=3)
    net.train()
    with torch.no_grad():
        net(PIXELS)
    save_model(folder / "model", net.eval(), SPEC, about={})
    return folder / "model"


def ours(model):
    with torch.inference_mode():
        return load_model(model).backbone(PIXELS).cls


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_micro_patch8", {}),
        ("vit_micro_patch8", {"registers": 2, "layer_scale": 0.1}),
        ("vit_micro_patch8", {"positions": "sincos"}),
        ("resnet10", {"stem": "imagenet"}),
        ("resnet50", {"stem": "imagenet"}),
    ],
)
def test_timm_loads_the_folder(tmp_path, name, options):
    import timm

    model = saved(tmp_path, name, **options)
    assert saccade.export(model, to="timm", out=tmp_path / "out") < 1e-5
    peer = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(peer(PIXELS), ours(model), atol=1e-5, rtol=1e-5)
    assert peer.pretrained_cfg["mean"] == list(SPEC.mean) and peer.pretrained_cfg["input_size"] == (3, 32, 32)
    assert "local-dir" in (tmp_path / "out" / "README.md").read_text()
    if name.startswith("vit") and not options:
        again = load_model(f"{tmp_path / 'out' / 'model.safetensors'}@vit_micro_patch8")
        with torch.inference_mode():
            torch.testing.assert_close(again.backbone(PIXELS).cls, ours(model), atol=1e-5, rtol=1e-5)


def test_transformers_loads_the_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason='this test needs pip install "saccade[text]"')
    model = saved(tmp_path, "vit_micro_patch8")
    assert saccade.export(model, to="hf", out=tmp_path / "out") < 1e-5
    peer = transformers.ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    with torch.inference_mode():
        torch.testing.assert_close(peer(PIXELS).last_hidden_state[:, 0], ours(model), atol=1e-5, rtol=1e-5)
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == list(SPEC.mean) and processor["size"] == {"height": 32, "width": 32}


def test_onnx_runs_the_file(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason='this test needs pip install "saccade[onnx]"')
    import onnxruntime

    model = saved(tmp_path, "vit_micro_patch8")
    assert saccade.export(model, to="onnx", out=tmp_path / "out") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": PIXELS.numpy()})[0]  # any number of images, not the two it was made with
    torch.testing.assert_close(torch.from_numpy(found), ours(model), atol=1e-5, rtol=1e-4)


def test_safetensors_keep_everything(tmp_path):
    model = saved(tmp_path, "resnet10_w8", stem="cifar")
    words = ["export", str(model), "--to", "safetensors", "--out", str(tmp_path / "out"), "--json"]
    found = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).output)
    assert found["difference"] == 0
    again = load_model(tmp_path / "out")
    assert fingerprint(again.backbone) == fingerprint(load_model(model).backbone) and again.spec == SPEC


@pytest.mark.parametrize(
    ("name", "options", "to"),
    [
        ("vit_micro_patch8_conv", {}, "timm"),
        ("vit_micro_patch8", {"attention": "window:2"}, "timm"),
        ("vit_micro_patch8", {"pool": "mean"}, "timm"),
        ("resnet10_w8", {}, "timm"),
        ("resnet18_c4_w8", {}, "timm"),
        ("resnet10", {}, "hf"),
        ("vit_micro_patch8", {"registers": 1}, "hf"),
        ("vit_micro_patch8", {"pool": "mean"}, "hf"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, name, options, to):
    with pytest.raises(ModelError, match="no counterpart"):
        saccade.export(saved(tmp_path, name, **options), to=to, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_wrong_calls(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="unknown layout"):
        saccade.export("random:vit_micro_patch8", to="keras", out=tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        saccade.export("random:vit_micro_patch8", to="timm", out=tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependency, match=r'pip install "saccade\[onnx\]"'):
        saccade.export("random:vit_micro_patch8", to="onnx", out=tmp_path / "out")
