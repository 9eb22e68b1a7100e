"""Weights in other layouts: timm's, torchvision's, and the official DINO and DINOv2 checkpoints.

timm's layout is the exchange format; the card of a family (``TimmLayout``) converts between it and ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from saccade.errors import ModelError
from saccade.models.card import Inferred, no_counterpart
from saccade.models.nn.network import Network
from saccade.models.nn.slice_pooling import SlicePooling
from saccade.models.registry import cards, family_of

State = dict[str, Tensor]
HEADS = ("head.", "fc.", "mask_token", "fc_norm.", "head_dist.")


def to_timm_state(network: Network) -> State:
    """The weights in timm's layout, loadable there with ``strict=True``.

    A class token and its position are one vector here and two in timm: the position is written as zero.
    With registers the layout is that of timm's ``no_embed_class=True``. LayerScale needs ``init_values``.
    A Swin's tables are those of whole windows, as timm has them where a window fits into the last map.

    Raises
    ------
    ModelError
        timm's plain ViT, ResNet or Swin has no such network.
    """
    if isinstance(network, SlicePooling):
        return to_timm_state(network.network)
    layout = family_of(network.settings).timm
    if layout is None:
        raise no_counterpart(network.name, type(network).__name__)
    if network.settings.axes != 2:
        raise no_counterpart(network.name, "a network for volumes")
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return layout.export_state(network, state)


def load_timm_state(network: Network, state: Mapping[str, Tensor]) -> None:
    """Load weights in timm's layout or in our own; heads of classifiers are left out.

    Learned positions are resized to the network's grid, and the first layer is adapted from three channels
    to one by summing them. Weights for images are inflated for a network for volumes (``inflate``).

    Raises
    ------
    ModelError
        Keys are missing, superfluous or of the wrong shape. The message names them.
    """
    if isinstance(network, SlicePooling):
        load_timm_state(network.network, {key.removeprefix("network."): value for key, value in state.items()})
        return
    weights = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    axes = axes_of(weights)
    if network.settings.axes == 3:
        weights = inflate(network, weights)
    layout = family_of(network.settings).timm
    if layout is not None:
        weights = layout.import_state(network, weights, axes)
    first = "conv1.weight" if "conv1.weight" in weights else "patch_embed.proj.weight"
    if network.channels == 1 and first in weights and weights[first].ndim >= 4 and weights[first].shape[1] == 3:
        weights[first] = weights[first].sum(dim=1, keepdim=True)
    check_keys(network.state_dict(), weights, network.name)
    network.load_state_dict(weights)


def load_dino_state(network: Network, state: Mapping[str, Any]) -> None:
    """Load an official DINO or DINOv2 checkpoint: plain weights, or the teacher of teacher and student."""
    load_timm_state(network, unwrap(state))


def axes_of(state: Mapping[str, Tensor]) -> int:
    """2 for weights of a network for images, 3 for volumes, from the kernel of the first layer."""
    first = next((state[key] for key in ("patch_embed.proj.weight", "conv1.weight") if key in state), None)
    return 2 if first is None else first.ndim - 2


def inflate(network: Network, state: State) -> State:
    """Weights for images as those of a network for volumes; weights for volumes stay as they are.

    Every kernel is repeated along depth and divided by it, so that a volume of identical slices has the features of the
    slice.

    References
    ----------
    Carreira and Zisserman 2017, arXiv:1705.07750.
    """
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    inflated = dict(state)
    for key, value in state.items():
        if key in shapes and len(shapes[key]) == 5 and value.ndim == 4:
            depth = shapes[key][2]
            inflated[key] = (value[:, :, None] / depth).expand(-1, -1, depth, -1, -1).contiguous()
    return inflated


def check_keys(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """Raise ModelError, naming the keys, unless a state has the expected tensors and no others."""
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = {"missing": missing, "superfluous": extra, "wrong shape": wrong}
    if not (missing or extra or wrong):
        return
    raise ModelError(
        f"the weights do not fit {name}",
        got="; ".join(f"{problem}: {_first(keys)}" for problem, keys in problems.items() if keys),
        expected=f"the {len(expected)} tensors of {name}",
        hint="name the network that the weights belong to: FILE@NAME",
    )


def _first(items: list[str]) -> str:
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(items[:4]) + more


def unwrap(state: Mapping[str, Any]) -> State:
    """The backbone's tensors of a checkpoint, the teacher's if there is one; prefixes of wrappers are removed."""
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


def infer(state: Mapping[str, Tensor]) -> Inferred:
    """The network that a state dict belongs to: name, options, size in pixels and channels.

    Raises
    ------
    ModelError
        The layout is unknown, or saccade does not build a network of this size.
    """
    for card in cards():
        inferred = card.timm.infer(state) if card.timm else None
        if inferred is not None:
            return inferred
    raise ModelError(
        "cannot infer the architecture from the weights",
        got=f"{len(state)} tensors: " + _first(list(state)),
        expected="a ViT, ResNet or Swin in the layout of timm, torchvision or DINO",
        hint="load a model saved by saccade by its folder: config.json describes the network",
    )
