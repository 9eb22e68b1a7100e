"""Layouts of weights: ours, timm's, torchvision's, and the official DINO and DINOv2 checkpoints.

timm's layout is the exchange format. Ours differs from it in one place: a class token and its position are
one vector here (their sum), two in timm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saccade.errors import ModelError
from saccade.models.backbones.build import Network
from saccade.models.backbones.resnet import ResNet
from saccade.models.backbones.slice_pooling import Sliced
from saccade.models.backbones.swin_hvt import Swin
from saccade.models.backbones.vit import ViT
from saccade.models.nn.positions import resize_table
from saccade.models.registry import ARCHITECTURES
from saccade.models.settings import ResNetSettings, SwinSettings, ViTSettings

State = dict[str, Tensor]
HEADS = ("head.", "fc.", "mask_token", "fc_norm.", "head_dist.")
SWIN_BUFFERS = (".relative_position_index", ".attn_mask")  # in older files: what follows from window and image size
SWIN_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"


def to_timm_state(backbone: Network) -> State:
    """The weights in timm's layout, loadable there with ``strict=True``.

    A class token and its position are one vector here and two in timm: the position is written as zero.
    With registers the layout is that of timm's ``no_embed_class=True``. LayerScale needs ``init_values``.
    A Swin's tables are those of whole windows, as timm has them where a window fits into the last map.
    Raises ModelError where timm's plain ViT, ResNet or Swin has no such network.
    """
    if isinstance(backbone, Sliced):
        return to_timm_state(backbone.network)
    if backbone.settings.axes != 2:
        raise _not_in_timm(backbone.name, "a network for volumes")
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    if isinstance(backbone, ResNet):
        if backbone.settings.stem != "imagenet" or backbone.settings.width != 64:
            got = f"stem {backbone.settings.stem}, width {backbone.settings.width}"
            raise _not_in_timm(backbone.name, got)
        return state
    if isinstance(backbone, Swin):
        return state
    if not isinstance(backbone, ViT):
        raise _not_in_timm(backbone.name, type(backbone).__name__)
    s = backbone.settings
    if s.stem != "linear" or s.norm != "pre" or s.positions == "rotary":
        raise _not_in_timm(s.name, f"stem {s.stem}, norm {s.norm}, positions {s.positions}")
    grid = backbone.positions.grid
    table = backbone.positions.added(grid, backbone.cls_token.expand(-1, math.prod(grid), -1))
    if table is None:
        table = torch.zeros(1, math.prod(grid), s.dim)
    table = table.detach().cpu()
    state = {key: value for key, value in state.items() if not key.startswith("positions.")}
    if not s.registers:
        table = torch.cat([torch.zeros(1, 1, s.dim).to(table), table], dim=1)
    state["pos_embed"] = table
    return state


def _not_in_timm(name: str, got: str) -> ModelError:
    return ModelError(
        f"{name} has no counterpart in timm",
        got=got,
        expected="a ViT with linear stem, pre-norm and learned, sincos or no positions, a full ResNet, or a Swin",
        hint="use the safetensors file of the model folder",
    )


def load_timm_state(backbone: Network, state: Mapping[str, Tensor]) -> None:
    """Fill a network from a state in timm's layout or in our own; heads of classifiers are left out.

    Learned positions are resized to the network's grid, and the first layer is adapted from three channels
    to one by summing them. Weights for images are inflated for a network for volumes (``inflate``). Raises
    ModelError naming the keys that are missing, superfluous or of wrong shape.
    """
    if isinstance(backbone, Sliced):
        inner = {key.removeprefix("network."): value for key, value in state.items()}
        load_timm_state(backbone.network, inner)
        return
    given = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    axes = axes_of(given)
    if backbone.settings.axes == 3:
        given = inflate(backbone, given)
    if isinstance(backbone, ViT):
        given = _own_vit_layout(backbone, given, axes)
    elif isinstance(backbone, Swin):
        given = {key: value for key, value in given.items() if not key.endswith(SWIN_BUFFERS)}
    first = "conv1.weight" if "conv1.weight" in given else "patch_embed.proj.weight"
    if backbone.channels == 1 and first in given and given[first].ndim >= 4 and given[first].shape[1] == 3:
        given[first] = given[first].sum(dim=1, keepdim=True)
    check_keys(backbone.state_dict(), given, backbone.name)
    backbone.load_state_dict(given)


def load_dino_state(backbone: Network, state: Mapping[str, Any]) -> None:
    """Fill a network from an official DINO or DINOv2 file: plain, or the teacher of teacher and student."""
    load_timm_state(backbone, unwrap(state))


def axes_of(state: Mapping[str, Tensor]) -> int:
    """2 for weights of a network for images, 3 for volumes: what the kernel of its first layer says."""
    first = next((state[key] for key in ("patch_embed.proj.weight", "conv1.weight") if key in state), None)
    return 2 if first is None else first.ndim - 2


def inflate(backbone: Network, given: State) -> State:
    """Weights for images as those of a network for volumes; weights for volumes stay as they are.

    Every kernel is repeated along depth and divided by it, so that a volume whose slices are all alike is answered as
    the slice was (Carreira and Zisserman 2017, arXiv:1705.07750).
    """
    own = backbone.state_dict()
    found = dict(given)
    for key, value in given.items():
        if key in own and own[key].ndim == 5 and value.ndim == 4:
            depth = own[key].shape[2]
            found[key] = (value[:, :, None] / depth).expand(-1, -1, depth, -1, -1).contiguous()
    return found


def _own_vit_layout(backbone: ViT, given: State, axes: int) -> State:
    """timm's names to ours: the position of prefix tokens is added to them, that of patches is resized.

    axes   of what the weights were made for; a table for images is repeated for every slice of a volume
    """
    given = {key.replace("register_tokens", "reg_token"): value for key, value in given.items()}
    if backbone.settings.positions == "factorised":
        return given | _own_lines(backbone, given, axes)
    if backbone.settings.positions != "learned":
        return given  # a table in the file is then reported as superfluous, never dropped
    own = "positions.table" in given
    table = given.pop("positions.table" if own else "pos_embed", None)
    if table is None or table.ndim != 3 or table.shape[2] != backbone.dim:
        shape = "nothing" if table is None else f"{tuple(table.shape)}"
        raise ModelError(
            f"the positions in the weights do not fit {backbone.name}",
            got=f"pos_embed: {shape}",
            expected=f"pos_embed: (1, N, {backbone.dim})",
            hint="name the network that the weights belong to; a weights file takes it as FILE@NAME",
        )
    registers = given["reg_token"].shape[1] if "reg_token" in given else 0
    prefix, side = (0, round(table.shape[1] ** (1 / axes))) if own else _split_positions(table.shape[1], registers)
    if prefix:
        given["cls_token"] = given["cls_token"] + table[:, :1]
    if prefix > 1:
        given["reg_token"] = given["reg_token"] + table[:, 1:prefix]
    grid = backbone.positions.grid
    found = resize_table(table.detach()[:, prefix:], (side,) * axes, grid[-axes:])
    given["positions.table"] = found.repeat(1, math.prod(grid[:-axes]), 1)
    return given


def _own_lines(backbone: ViT, given: State, axes: int) -> State:
    """One table an axis, resized; slices of a volume begin alike where the weights know none."""
    grid = backbone.positions.grid
    missing, found = len(grid) - axes, {}
    for axis, length in enumerate(grid):
        key = f"positions.tables.{axis - missing}"
        line = given.get(key) if axis >= missing else torch.zeros(1, length, backbone.dim)
        if line is not None:
            found[f"positions.tables.{axis}"] = resize_table(line, (line.shape[1],), (length,))
    return found


def _split_positions(count: int, registers: int) -> tuple[int, int]:
    """How many of the positions belong to prefix tokens, and the side of the square grid of the others."""
    for prefix in (0, 1, 1 + registers):
        side = math.isqrt(max(0, count - prefix))
        if side and side * side == count - prefix:
            return prefix, side
    raise ModelError(
        "the table of positions belongs to no square grid",
        got=f"{count} positions, {registers} registers",
        expected="a square number, with or without class and register tokens",
        hint="resize the table to a square grid before loading it",
    )


def check_keys(own: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> None:
    missing = [key for key in own if key not in given]
    extra = [key for key in given if key not in own]
    wrong = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    faults = {"missing": missing, "superfluous": extra, "wrong shape": wrong}
    if not (missing or extra or wrong):
        return
    parts = [f"{what}: {_first(keys)}" for what, keys in faults.items() if keys]
    raise ModelError(
        f"the weights do not fit {name}",
        got="; ".join(parts),
        expected=f"the {len(own)} tensors of {name}",
        hint="name the network that the weights belong to; a weights file takes it as FILE@NAME",
    )


def _first(items: list[str]) -> str:
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(items[:4]) + more


def unwrap(state: Mapping[str, Any]) -> State:
    """The backbone's tensors out of a checkpoint: teacher before student, no wrapper's prefix, no head."""
    for part in ("teacher", "student", "state_dict", "model"):
        if isinstance(state.get(part), Mapping):
            return unwrap(state[part])
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "backbone.", "_orig_mod."):
        if any(key.startswith(prefix) for key in tensors):
            # DINO's projection head lies beside the backbone: what lacks the prefix is not part of it.
            inner = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
            return unwrap(inner)
    return tensors


def infer(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object], int, int]:
    """Name, options, size_px and channels of the network that a state belongs to.

    Raises ModelError when the layout is unknown. Its messages say what was found.
    """
    if {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= state.keys():
        return _infer_vit(state)
    if {"conv1.weight", "layer4.0.conv1.weight"} <= state.keys() and state["conv1.weight"].shape[-1] == 7:
        return _infer_resnet(state)
    if {"patch_embed.proj.weight", SWIN_TABLE} <= state.keys():
        return _infer_swin(state)
    raise ModelError(
        "the network cannot be told from the weights",
        got=f"{len(state)} tensors: " + _first(list(state)),
        expected="a ViT, ResNet or Swin in the layout of timm, torchvision or DINO",
        hint="a model saved by saccade is loaded by its folder: its config.json tells the rest",
    )


def _infer_vit(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object], int, int]:
    dim, channels, _, patch = state["patch_embed.proj.weight"].shape
    depth = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=0)
    sizes = {
        (s.dim, s.depth): base for base, s in ARCHITECTURES.items() if isinstance(s, ViTSettings) and s.stem == "linear"
    }
    if (dim, depth) not in sizes:
        raise _no_such_size(f"width {dim}, {depth} layers", sizes)
    registers = next((state[key].shape[1] for key in ("reg_token", "register_tokens") if key in state), 0)
    scaled = "blocks.0.ls1.gamma" in state
    options: dict[str, object] = {"registers": registers, "layer_scale": 1e-5 if scaled else None}
    side = math.isqrt(state["pos_embed"].shape[1])
    return f"{sizes[dim, depth]}_patch{patch}", options, side * patch, channels


def _infer_resnet(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object], int, int]:
    layers = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    sizes: dict[tuple[tuple[int, ...], bool], str] = {
        (s.layers, s.bottleneck): base for base, s in ARCHITECTURES.items() if isinstance(s, ResNetSettings)
    }
    if (layers, bottleneck) not in sizes:
        raise _no_such_size(f"blocks {layers}, bottleneck {bottleneck}", sizes)
    width, channels = state["conv1.weight"].shape[:2]
    name = sizes[layers, bottleneck] + ("" if width == 64 else f"_w{width}")
    return name, {"stem": "imagenet"}, 224, channels


def _infer_swin(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object], int, int]:
    """The size is the one that four stages tile with whole windows, as in timm's names: 224 for 7, 384 for 12."""
    dim, channels, _, patch = state["patch_embed.proj.weight"].shape
    depths = tuple(len({k.split(".")[3] for k in state if k.startswith(f"layers.{n}.blocks.")}) for n in range(4))
    sizes: dict[tuple[int, tuple[int, ...]], str] = {
        (s.dim, s.depths): base for base, s in ARCHITECTURES.items() if isinstance(s, SwinSettings)
    }
    if (dim, depths) not in sizes:
        raise _no_such_size(f"width {dim}, blocks {depths}", sizes)
    window = (math.isqrt(state[SWIN_TABLE].shape[0]) + 1) // 2
    return f"{sizes[dim, depths]}_patch{patch}_window{window}", {}, 8 * patch * window, channels


def _no_such_size(got: str, sizes: Mapping[Any, str]) -> ModelError:
    return ModelError(
        "the weights belong to a network that saccade does not build",
        got=got,
        expected="a size of " + ", ".join(sizes.values()),
        hint="export its features and evaluate those",
    )
