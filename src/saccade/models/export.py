"""A model for other programs (``saccade export``): timm, transformers, ONNX, or plain safetensors.

Each layout is one function from a network to files. A network without a counterpart is refused, never approximated; the
exported files are loaded again by the other program, and its features compared, before the folder gets its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from saccade.base.contracts import Features, InputSpec
from saccade.base.files import atomic_folder, check_writable
from saccade.errors import MissingDependency, ModelError, UsageError, require, unknown
from saccade.models.backbones.model_card import model_card
from saccade.models.backbones.weight_formats import State, to_timm_state
from saccade.models.backbones.weights import LoadedModel, load_model, save_model
from saccade.models.card import TimmLayout
from saccade.models.nn.network import Network
from saccade.models.registry import family_of

TOLERANCE = 1e-4  # of features, relative to their largest: other programs add up in another order
TIMM_LOAD = 'timm.create_model("local-dir:THIS FOLDER", pretrained=True)'
OPSET = 18


# --- timm -----------------------------------------------------------------------------------------


def _timm_config(network: Network, layout: TimmLayout[Any], spec: InputSpec) -> dict[str, Any]:
    """config.json as timm reads it: a name it knows, and the arguments that make this network of it."""
    architecture, arguments = layout.model(network.settings, spec.size_px)
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": network.dim,
        "model_args": {"num_classes": 0} | arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "first_conv": None,
            "classifier": None,
            "input_size": [network.channels, spec.size_px, spec.size_px],
            "fixed_input_size": layout.fixed_size,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        },
    }


def _to_timm(model: LoadedModel, folder: Path) -> Callable[[Tensor], Tensor]:
    import timm

    state = to_timm_state(model.backbone)
    layout = family_of(model.backbone.settings).timm
    assert layout is not None  # to_timm_state has refused the others
    config = _timm_config(model.backbone, layout, model.spec)
    _write(folder, state, config)
    peer = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda x: peer(x)


# --- transformers -----------------------------------------------------------------------------------


def _to_hf(model: LoadedModel, folder: Path) -> Callable[[Tensor], Tensor] | None:
    """Layout of transformers' ViTModel; None where transformers is not installed to read it back."""
    network, spec = model.backbone, model.spec
    layout = family_of(network.settings).timm
    if layout is None or layout.hf_config is None:
        raise ModelError(
            f"{network.name} has no counterpart in transformers",
            got=type(network).__name__,
            expected="a plain ViT, which is its ViTModel",
            hint="--to timm supports ResNets and Swins",
        )
    config = layout.hf_config(network.settings)
    state = _hf_state(to_timm_state(network))
    _write(folder, state, config)
    if not spec.offset and not spec.grey:  # its processor has no offset and no conversion to grey
        (folder / "preprocessor_config.json").write_text(json.dumps(_hf_processor(spec), indent=1), encoding="utf-8")
    try:
        transformers = require("transformers", "text", "reading the export back")
    except MissingDependency:
        return None
    peer = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return lambda x: peer(x).last_hidden_state[:, 0]


def _hf_processor(spec: InputSpec) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": spec.size_px, "width": spec.size_px},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / spec.scale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _hf_state(state: State) -> State:
    """timm's names to those of ViTModel; queries, keys and values are separate there."""
    renamed = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "norm.": "layernorm.",
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    converted: State = {}
    for key, value in state.items():
        block, inner = "", key
        if key.startswith("blocks."):
            _, number, inner = key.split(".", 2)
            block = f"encoder.layer.{number}."
        if inner.startswith("attn.qkv."):
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                converted[f"{block}attention.attention.{part}.{inner.rpartition('.')[2]}"] = third.contiguous()
            continue
        old = next(name for name in renamed if inner.startswith(name))
        converted[block + renamed[old] + inner.removeprefix(old)] = value
    return converted


# --- ONNX -------------------------------------------------------------------------------------------


class _Vector(nn.Module):
    """The network as a function from pixels to one vector per image."""

    def __init__(self, backbone: Network):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        features: Features = self.backbone(pixels)
        return features.cls


def _to_onnx(model: LoadedModel, folder: Path) -> Callable[[Tensor], Tensor]:
    """model.onnx: ``pixels`` [B C S S] normalised, ``features`` [B D]; any B, the size as trained."""
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "an export to ONNX")
    runtime = require("onnxruntime", "onnx", "reading the export back")
    spec = model.spec
    pixels = torch.zeros(2, spec.channels, *(spec.size_px,) * spec.axes)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    torch.onnx.export(
        _Vector(model.backbone.cpu().eval()).eval(),
        (pixels,),
        str(file),
        input_names=["pixels"],
        output_names=["features"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0])


# --- all ----------------------------------------------------------------------------------------------


def _to_safetensors(model: LoadedModel, folder: Path) -> Callable[[Tensor], Tensor]:
    """Our own folder, for every network: config.json and model.safetensors; loads as MODEL."""
    save_model(folder, model.backbone, model.spec, about={"exported_from": model.name})
    again = load_model(folder).backbone
    return lambda x: again(x).cls


LAYOUTS: dict[str, Callable[[LoadedModel, Path], Callable[[Tensor], Tensor] | None]] = {
    "timm": _to_timm,
    "hf": _to_hf,
    "onnx": _to_onnx,
    "safetensors": _to_safetensors,
}
LOADED_BY = {
    "timm": TIMM_LOAD,
    "hf": 'transformers.ViTModel.from_pretrained("THIS FOLDER", add_pooling_layer=False)',
    "onnx": 'onnxruntime.InferenceSession("THIS FOLDER/model.onnx")',
    "safetensors": 'saccade.models.backbones.weights.load_model("THIS FOLDER")',
}


def _write(folder: Path, state: State, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: value.clone().contiguous() for key, value in state.items()}
    safetensors.torch.save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


@torch.inference_mode()
def largest_difference(model: LoadedModel, answer: Callable[[Tensor], Tensor]) -> float:
    """Difference of the features of three random images in the other program, relative to our largest feature."""
    spec = model.spec
    x = torch.randn(3, spec.channels, *(spec.size_px,) * spec.axes, generator=torch.Generator().manual_seed(0))
    ours = model.backbone.cpu().eval()(x).cls
    return float((answer(x) - ours).abs().max() / ours.abs().max().clamp_min(1e-12))


def export(model: str | Path, to: str, out: Path) -> float | None:
    """Write MODEL into the new folder ``out`` in another program's layout.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder, weights file, ``timm:NAME`` or ``random:NAME``.
    to : {"timm", "hf", "onnx", "safetensors"}
        The layout.
    out : Path
        Folder to create.

    Returns
    -------
    float or None
        Relative difference of the features in the other program; None where it is not installed.

    Raises
    ------
    ModelError
        The program has no such network, or its features differ.
    UsageError
        The layout is unknown, or ``out`` exists.
    StorageError
        ``out`` cannot be written.
    """
    if to not in LAYOUTS:
        raise unknown("layout", to, LAYOUTS)
    if out.exists():
        raise UsageError("--out exists already", got=out, hint="name a new folder")
    check_writable(out)
    loaded = load_model(model)
    with atomic_folder(out) as temporary:
        answer = LAYOUTS[to](loaded, temporary)
        difference = None if answer is None else largest_difference(loaded, answer)
        if difference is not None and not difference <= TOLERANCE:
            raise ModelError(
                f"the exported model differs from {loaded.name}",
                got=f"a relative difference of the features of {difference:.2g} in {to}",
                expected=f"at most {TOLERANCE:g}",
            )
        card = model_card(loaded.name, loaded.backbone, loaded.spec, {"exported_to": to}).split("## Load")
        load_section = f"## Load\n\n```python\n{LOADED_BY[to]}\n```\n\n## Input{card[1].split('## Input')[1]}"
        (temporary / "README.md").write_text(card[0] + load_section, encoding="utf-8")
    return difference
