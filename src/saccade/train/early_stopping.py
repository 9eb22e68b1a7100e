"""Early stopping: the validation images after every evaluation, and the weights that were best on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from saccade import runtime
from saccade.data.cache.image_cache import ImageCache
from saccade.errors import StorageError
from saccade.evaluation.metrics import balanced_accuracy
from saccade.features.embed_images import full_view, predict_view
from saccade.methods.supervised import Supervised
from saccade.train import checkpoint
from saccade.train.loop import Plan


class Validation:
    """Loss and balanced accuracy on the validation images; the best state is kept in ``checkpoints/best``.

    Better is a higher balanced accuracy, or the same with a lower loss. After ``train.patience`` evaluations without
    a better one, ``stop_reason`` says so.
    """

    def __init__(self, method: Supervised, images: ImageCache, plan: Plan, start: int, *, say: Callable[[str], None]):
        self.method, self.images, self.plan, self.say = method, images, plan, say
        self.stop_reason: str | None = None
        self.best: tuple[float, float] = (-1.0, 0.0)
        self.best_step = -1
        saved = checkpoint.load_named(plan.run, checkpoint.BEST, say)
        if saved is not None and saved["step"] <= start:
            self.best, self.best_step = tuple(saved["score"]), int(saved["step"])

    def __call__(self, step: int, fraction: float) -> dict[str, float]:
        plan, method, everything = self.plan, self.method, np.arange(len(self.images))
        view, precision = full_view(self.images, plan.spec), plan.train.precision
        scores = predict_view(view, method, method.classify, everything, device=plan.device, precision=precision)
        labels = self.images.labels
        assert labels is not None
        loss = float(torch.nn.functional.cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels)))
        balanced = float(balanced_accuracy(scores, labels, np.ones((1, len(labels))))[0])
        if (balanced, -loss) > self.best:
            self.best, self.best_step = (balanced, -loss), step
            if runtime.rank() == 0:
                self._keep()
        waited = (step - self.best_step) // plan.train.evaluate_every
        if plan.train.patience and waited >= plan.train.patience and fraction < 1:
            self.stop_reason = (
                f"stopped early at step {step}: no better validation since step {self.best_step} "
                f"(balanced accuracy {100 * self.best[0]:.1f} %)"
            )
        return {"val_loss": loss, "val_balanced_accuracy": balanced}

    def _keep(self) -> None:
        """Write the best state. Where the disk is full the one before stays, and that is said."""
        state = {"step": self.best_step, "score": list(self.best), "method": self.method.state_dict()}
        try:
            checkpoint.save_named(self.plan.run, checkpoint.BEST, state)
        except StorageError as error:
            self.say(f"{error}\n  training goes on; the best weights kept are older than step {self.best_step}")

    def restore_best(self) -> int:
        """Put the best weights back; returns their step."""
        saved = checkpoint.load_named(self.plan.run, checkpoint.BEST, self.say)
        if saved is None:
            return -1
        self.method.load_state_dict(saved["method"])
        return int(saved["step"])
