"""A backbone with the classifier that was trained on it: kept beside the model, loaded again, measured on test images.

``MODEL/classifier.safetensors`` lies beside ``model.safetensors``; the names of the classes are in its metadata.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from saccade.base.contracts import InputSpec
from saccade.base.digests import write_digests
from saccade.base.files import write_bytes
from saccade.data.cache.image_cache import ImageCache
from saccade.errors import ModelError
from saccade.features.embed_images import full_view, predict_view
from saccade.methods.supervised import Supervised, SupervisedConfig
from saccade.models.backbones.weights import load_model

FILE = "classifier.safetensors"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network in evaluation mode, its input, and the classes in the order of its answers."""

    network: Supervised
    spec: InputSpec
    classes: tuple[str, ...]

    def scores(self, cache: ImageCache, indices: np.ndarray, device: torch.device, precision: str) -> np.ndarray:
        """Probabilities [N K] float32 of the images at ``indices``, brought to 0..1 by the range of the model."""
        network = self.network.to(device)
        view = full_view(dataclasses.replace(cache, offset=self.spec.offset, scale=self.spec.scale), self.spec)
        answers = predict_view(view, network, network.classify, indices, device=device, precision=precision)
        return torch.softmax(torch.from_numpy(answers), dim=1).numpy()


def save_classifier(folder: Path, method: Supervised) -> None:
    """Write the classifier beside the model in ``folder``. Raises StorageError when the disk refuses."""
    state = {f"head.{key}": value for key, value in method.head.state_dict().items()}
    state |= {f"head_norm.{key}": value for key, value in method.head_norm.state_dict().items()}
    metadata = {"classes": json.dumps(method.config.classes), "frozen": json.dumps(method.config.frozen)}
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_bytes(folder / FILE, safetensors.torch.save(plain, metadata=metadata))
    write_digests(folder)


def load_classifier(run: str | Path) -> Classifier:
    """The classifier of a run of ``finetune``: its run folder or model folder. ModelError where there is none."""
    folder = next((path for path in (Path(run) / "model", Path(run)) if (path / FILE).exists()), None)
    if folder is None:
        raise ModelError(f"no classifier in {run}", expected=f"model/{FILE}", hint="saccade finetune makes one")
    loaded = load_model(folder)
    with safetensors.safe_open(folder / FILE, framework="pt") as file:
        metadata = file.metadata()
    classes = tuple(json.loads(metadata["classes"]))
    config = SupervisedConfig(classes, frozen=json.loads(metadata["frozen"]))
    network = Supervised(loaded.backbone, config, seed=0)
    missing, extra = network.load_state_dict(safetensors.torch.load_file(folder / FILE), strict=False)
    if extra or any(not key.startswith("network.") for key in missing):
        raise ModelError(f"{folder / FILE} does not fit its model", got=", ".join([*missing[:3], *extra[:3]]))
    return Classifier(network.eval(), loaded.spec, classes)
