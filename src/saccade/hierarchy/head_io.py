"""Save and load heads: weights as safetensors, the rest as JSON; loading runs no code from the files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from saccade.base import places, run_folder
from saccade.base.files import write_bytes
from saccade.errors import ModelError
from saccade.hierarchy.heads import HEADS, FittedHead, HeadConfig

CONFIG, WEIGHTS = "head.json", "head.safetensors"


@dataclass(frozen=True)
class SavedHead:
    """A head, its classes in the order of its outputs, and the folder of its hierarchy."""

    head: FittedHead
    classes: tuple[str, ...]
    hierarchy: str


def save_head(
    folder: Path,
    head: FittedHead,
    config: HeadConfig,
    classes: tuple[str, ...],
    hierarchy: Path,
    slides: Mapping[str, str],
) -> None:
    """Save a head in ``folder``.

    ``slides`` holds the settings that name the labelled slides (``data.source`` and others), so that the local page can
    show them with the head. Raises StorageError when writing fails.
    """
    state = {f"network.{key}": value.detach().contiguous() for key, value in head.network.state_dict().items()}
    state |= {"mean": torch.from_numpy(head.mean), "std": torch.from_numpy(head.std)}
    about = {
        "config": dataclasses.asdict(config),
        "classes": list(classes),
        "hierarchy": places.relative(str(hierarchy.resolve()), folder),
    }
    about["slides"] = {key: places.relative(value, folder) for key, value in slides.items()}
    write_bytes(folder / WEIGHTS, safetensors.torch.save(state))
    run_folder.write_json(folder / CONFIG, about)


def load_head(run: Path) -> SavedHead:
    """Load the head of a run of ``finetune`` on slides. Raises ModelError where there is none."""
    folder = run / "head"
    if not (folder / CONFIG).is_file():
        raise ModelError(f"no head of slides in {run}", expected="head/head.json", hint="saccade finetune makes one")
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    state = safetensors.torch.load_file(folder / WEIGHTS)
    mean, std = np.asarray(state.pop("mean")), np.asarray(state.pop("std"))
    config, classes = HeadConfig(**about["config"]), tuple(about["classes"])
    network = HEADS[config.kind](len(mean), len(classes), config)
    network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    return SavedHead(FittedHead(network.eval(), mean, std), classes, places.absolute(about["hierarchy"], folder))
