"""Weights in and out: saved models, official DINO files, timm layouts, random ones.

MODEL is a run folder, a model folder, a weights file (``FILE`` or ``FILE@vit_small_patch16``), ``timm:NAME``
or ``random:NAME``. A saved model is config.json, model.safetensors and README.md. Files that torch pickled
are read with ``weights_only``, so opening one never runs code.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from saccade.base.contracts import InputSpec
from saccade.base.digests import FILE as DIGESTS
from saccade.base.digests import damaged_files, read_digests, write_digests
from saccade.base.files import atomic_folder, free_space, write_text
from saccade.base.run_folder import HIERARCHY, read_json, write_json
from saccade.errors import DamagedFile, ModelError, StorageError, UsageError, first_line, unknown
from saccade.models.backbones.build import build
from saccade.models.backbones.model_card import model_card
from saccade.models.backbones.weight_formats import (
    State,
    check_keys,
    infer,
    load_dino_state,
    load_timm_state,
    to_timm_state,
    unwrap,
)
from saccade.models.nn.network import Network
from saccade.models.registry import card_of, names, parse

__all__ = [
    "LoadedModel",
    "file_fingerprint",
    "fingerprint",
    "load_dino_state",
    "load_model",
    "load_timm_state",
    "read_state",
    "save_model",
    "to_timm_state",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_EXAMPLES = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_small_patch14_dinov2",
    "swin_tiny_patch4_window7_224",
    "resnet18",
    "resnet50",
)
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
RESTORE = f"restore the folder from a copy; if you changed it on purpose, delete {DIGESTS}"
OURS_IN_TIMM = re.compile(
    r"(vit_(?:tiny|small|base|large)_patch\d+)_(?:224|384|dinov2|reg4_dinov2)"
    r"|(swin_(?:tiny|small|base)_patch4_window\d+)_(?:224|384)|(resnet(?:18|50))"
)


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, the input it expects, and its name in tables."""

    backbone: Network
    spec: InputSpec
    name: str


# --- reading ------------------------------------------------------------------------------------


def load_model(
    model: str | Path, *, channels: int = 3, size_px: int | None = None, axes: int = 2, seed: int = 0
) -> LoadedModel:
    """Load the network that MODEL names, in evaluation mode, with the input it expects.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder, weights file (``FILE`` or ``FILE@NAME``), ``timm:NAME`` or ``random:NAME``.
    channels : int
        Channels of ``random:``; 1 also converts weights of other programs to one channel.
    size_px, axes, seed : int
        Of ``random:``. The size is rounded down to a multiple of the patch; None: 224.

    Raises
    ------
    UsageError
        There is no such model.
    ModelError
        The weights are unreadable or do not fit the network.

    Examples
    --------
    >>> load_model("random:vit_micro_patch8", size_px=32).spec.size_px
    32
    """
    text = str(model)
    kind, sign, rest = text.partition(":")
    if sign and kind == "random":
        return _random(rest, channels, size_px, axes, seed)
    if sign and kind == "timm":
        return _from_timm(rest, channels)
    path, name = Path(text), None
    if not path.exists() and "@" in path.name:
        before, _, name = text.rpartition("@")
        path = Path(before)
    if not path.exists():
        raise UsageError(
            f"model not found: {path}",
            expected="a run folder, a model folder, a weights file, timm:NAME or random:NAME",
            hint=f"random:{text} has random weights" if text in names() else "check the path",
        )
    if path.is_file():
        if path.name == WEIGHTS and _is_saved(path.parent) and name is None:
            return _saved(path.parent)
        return _from_file(path, name, channels)
    for folder in (path / "model", path):
        if (folder / CONFIG).exists():
            return _saved(folder)
    if (path / HIERARCHY).exists():
        raise ModelError(
            f"{path} is a hierarchy, not a single network",
            expected=f"one of its levels: {path / 'tile'}, {path / 'region'}",
            hint=f"saccade finetune {path} SLIDES measures it, saccade embed gives one vector a slide",
        )
    raise ModelError(
        f"no model in {path}",
        expected=f"{CONFIG} and {WEIGHTS} there or in its folder model/",
        hint="a run has a model when its training has ended or was stopped cleanly",
    )


def fingerprint(network: Network) -> str:
    """Identify weights: the first 12 digits of the SHA-256 of all tensors, the same wherever the model is stored."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def file_fingerprint(model: str | Path) -> str:
    """Identify a weights file: the first 12 digits of its SHA-256. For ``timm:`` the ``fingerprint`` of the network."""
    text = str(model)
    if text.startswith("timm:"):
        return fingerprint(load_model(text).backbone)
    path = Path(text)
    if not path.exists() and "@" in path.name:
        path = Path(text.rpartition("@")[0])
    folders = (path / "model", path)
    file = path if path.is_file() else next(folder / WEIGHTS for folder in folders if (folder / WEIGHTS).exists())
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def _random(name: str, channels: int, size_px: int | None, axes: int, seed: int) -> LoadedModel:
    size_px = 224 if size_px is None else size_px
    settings = parse(name)
    if settings.capabilities.transformer:
        size_px = max(1, size_px // settings.unit_px) * settings.unit_px
    backbone = build(name, channels=channels, size_px=size_px, axes=axes, seed=seed)
    spec = dataclasses.replace(_usual_spec(channels, size_px), axes=axes)
    return LoadedModel(backbone.eval(), spec, f"random:{name}")


def _usual_spec(
    channels: int,
    size_px: int,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> InputSpec:
    """8-bit images with ImageNet's statistics; other than three channels share their average."""
    if channels != 3:
        mean, std = (sum(mean) / 3,) * channels, (sum(std) / 3,) * channels
    return InputSpec(channels=channels, size_px=size_px, offset=0.0, scale=255.0, mean=mean, std=std)


def _is_saved(folder: Path) -> bool:
    if not (folder / CONFIG).exists():
        return False
    config = read_json(folder / CONFIG)
    return isinstance(config, Mapping) and isinstance(config.get("saccade_format"), int)


def check_digests(folder: Path) -> None:
    """Raise ModelError where a file of a model folder is not as it was written; a model card may be edited."""
    try:
        digests = read_digests(folder)
    except DamagedFile as error:
        raise ModelError(error.what, got=error.got, hint=RESTORE) from error
    if digests is None:  # version 0.1
        return
    damaged = [path.name for path in damaged_files(folder, digests) if path.name != CARD]
    if damaged:
        raise ModelError(
            f"{folder} is damaged: {', '.join(damaged)}",
            got="another SHA-256, or a missing file",
            expected=f"as recorded in {folder / DIGESTS}",
            hint=RESTORE,
        )


def _saved(folder: Path) -> LoadedModel:
    if not _is_saved(folder):
        raise ModelError(
            f"{folder / CONFIG} was not written by saccade", hint=f"name the weights file: {folder / WEIGHTS}"
        )
    config = read_json(folder / CONFIG)
    if config["saccade_format"] > FORMAT:
        raise ModelError(
            f"{folder} was written by a newer saccade",
            got=f"format {config['saccade_format']}",
            expected=f"format {FORMAT} or older",
            hint="pip install --upgrade saccade",
        )
    check_digests(folder)
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["input"].items()}
        spec, backbone, label = InputSpec(**values), build(**config["backbone"]), str(config["label"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG} does not describe a model", got=repr(error), hint=RESTORE) from error
    state = read_state(folder / WEIGHTS)
    check_keys(backbone.state_dict(), state, f"{backbone.name} as described in {folder / CONFIG}")
    backbone.load_state_dict(state)
    return LoadedModel(backbone.eval(), spec, label)


def read_state(path: Path) -> dict[str, Any]:
    """The content of a .safetensors or torch file; ModelError, naming the file, when it is not readable."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Official DINO checkpoints carry their command line; a Namespace only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelError(
            f"{path} is not a readable weights file",
            got=first_line(error),
            expected=".safetensors, or a torch file that holds tensors only",
            hint="a file that holds code is not opened; save its state_dict() instead",
        ) from error
    if not isinstance(state, Mapping):
        raise ModelError(
            f"{path} does not contain a state dict",
            got=type(state).__name__,
            expected="a state_dict: names and tensors",
            hint="save the state_dict() of the network",
        )
    return dict(state)


def _from_file(path: Path, name: str | None, channels: int) -> LoadedModel:
    state = unwrap(read_state(path))
    try:
        backbone, spec = _from_state(state, name, channels)
    except ModelError as error:
        what = f"{path}: {error.what}"
        raise ModelError(what, got=error.got, expected=error.expected, hint=error.hint) from error
    return LoadedModel(backbone, spec, path.stem)


def _from_state(state: State, name: str | None, channels: int) -> tuple[Network, InputSpec]:
    """A network made to fit the state: its registers, LayerScale, native size and channels."""
    inferred = infer(state)
    if name is not None and card_of(name) is not card_of(inferred.name):
        raise ModelError(
            f"the weights are not those of {name}",
            got=f"weights of {inferred.name}",
            expected=name,
            hint="leave out the name",
        )
    backbone = build(
        name or inferred.name,
        channels=1 if channels == 1 else inferred.channels,
        size_px=inferred.size_px,
        options=inferred.options,
    )
    load_timm_state(backbone, state)
    return backbone.eval(), _usual_spec(backbone.channels, inferred.size_px)


def _from_timm(name: str, channels: int) -> LoadedModel:
    """Pretrained weights of timm in our own network; downloads, because the name was asked for."""
    import timm

    plain = name.partition(".")[0]
    match = OURS_IN_TIMM.fullmatch(plain)
    if match is None:
        raise unknown("timm model (of those with an architecture of saccade)", name, TIMM_EXAMPLES)
    ours = next(filter(None, match.groups()))
    try:
        peer = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the network stack under timm raises
        raise ModelError(
            f"timm could not provide {name!r}",
            got=first_line(error),
            expected="the weights in timm's cache, or a connection to download them",
            hint=f"check the connection, or load a file: FILE@{ours}",
        ) from error
    backbone, _ = _from_state(unwrap(peer.state_dict()), ours, channels)
    pretrained: Mapping[str, Any] = peer.pretrained_cfg  # type: ignore[assignment]
    mean, std = tuple(pretrained["mean"]), tuple(pretrained["std"])
    spec = _usual_spec(backbone.channels, int(pretrained["input_size"][-1]), mean, std)
    return LoadedModel(backbone, spec, f"timm:{name}")


# --- writing ------------------------------------------------------------------------------------


def save_model(folder: Path, backbone: Network, spec: InputSpec, *, about: Mapping[str, Any]) -> None:
    """Write a model folder atomically: config.json, model.safetensors and README.md.

    Parameters
    ----------
    folder : Path
        An older model in it is replaced, and kept where an error occurs.
    backbone : Network
        The network.
    spec : InputSpec
        The input it expects.
    about : mapping
        JSON-ready facts on how the model was made (method, steps, images, settings).

    Raises
    ------
    StorageError
        The folder cannot be written.
    """
    label = " ".join(filter(None, [str(about.get("method", "")), backbone.name]))
    config = {
        "saccade_format": FORMAT,
        "label": label,
        "backbone": backbone.config(),
        "input": dataclasses.asdict(spec),
        "about": dict(about),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    try:
        with atomic_folder(folder) as temporary:
            (temporary / WEIGHTS).write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))
            write_json(temporary / CONFIG, config)
            write_text(temporary / CARD, model_card(label, backbone, spec, about))
            write_digests(temporary)
    except StorageError as error:
        resumable = any((folder.parent / "checkpoints").glob("step-*/state.pt"))
        raise StorageError(
            f"cannot write the model to {folder}",
            got=error.got,
            hint=free_space(folder) + ("; --resume continues and saves the model" if resumable else ""),
        ) from error
