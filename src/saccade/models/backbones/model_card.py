"""README.md of a saved model (a "model card", Mitchell et al. 2019, arXiv:1810.03993, in short)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from saccade.base.contracts import InputSpec
from saccade.models.backbones.build import count_parameters
from saccade.models.nn.network import Network


def _volumes_as(spec: InputSpec) -> str:
    """How volumes become the input, for README.md."""
    cube = f"a cube of {spec.size_mm:g} mm about the middle" if spec.size_mm else "the cube around the whole volume"
    window = f" ({spec.window[0]:g} to {spec.window[1]:g})" if spec.window else ""
    return f"* volumes through {cube}, brought to 0..1 by `{spec.intensity}`{window}; outside is 0"


def model_card(label: str, backbone: Network, spec: InputSpec, about: Mapping[str, Any]) -> str:
    """README.md of a saved model: what it is, how to load it, its input, and how it was made."""
    numbers, shape = ", ".join, " ".join("TYX"[-spec.axes :])
    lines = [
        f"# {label}",
        "",
        f"An image representation learned with saccade: {backbone.name}, "
        f"{count_parameters(backbone) / 1e6:.2f} million parameters, features of width {backbone.dim}.",
        "",
        "## Load",
        "",
        "```python",
        "from saccade import load_model",
        "",
        'model = load_model("THIS FOLDER")',
        f"features = model.backbone(pixels)  # pixels [B C {shape}]; features.cls [B D], features.tokens [B N D]",
        "```",
        "",
        "## Input",
        "",
        f"* {spec.channels} channels, {spec.size_px} px" + (", turned to grey first" if spec.grey else ""),
        *([_volumes_as(spec)] if spec.axes == 3 else []),
        f"* `x = ((pixels - {spec.offset:g}) / {spec.scale:g} - mean) / std`",
        f"* mean {numbers(f'{v:.4f}' for v in spec.mean)}; std {numbers(f'{v:.4f}' for v in spec.std)}",
        "",
        "## How it was made",
        "",
        "```json",
        json.dumps(dict(about), indent=1, ensure_ascii=False),
        "```",
        "",
        "For research. Not validated for clinical decisions.",
        "",
    ]
    return "\n".join(lines)
