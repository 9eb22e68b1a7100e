"""``saccade quickstart``: pretrain, evaluate and report on synthetic tissue images."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.base import frames
from saccade.base.files import write_text
from saccade.base.run_folder import prepare, write_json
from saccade.data.open import open_source
from saccade.evaluation.protocol import EvalReport
from saccade.evaluation.tables import to_text
from saccade.tasks.evaluate import evaluate
from saccade.tasks.pretrain import pretrain
from saccade.train.loop import Console, Quiet
from saccade.train.run_config import load_config

DRAWN = "synthetic:tissue?n=4000&size=64"
SETTINGS: dict[str, Any] = {"model.size_px": 64, "views.grey_prob": 0.0, "views.hue": 0.05}
TABLE = "labels.csv"

WHY_NETWORK = (
    "This run uses {backbone}, a small convolutional network, and {method}: that is what saccade chooses for a few "
    "minutes on a CPU. Convolution assumes that nearby pixels belong together and that a nucleus looks the same "
    "wherever it lies, so it need not learn this from data; a plain vision transformer must learn both. The folder "
    "dino beside it holds the same network, trained by DINO on the same images for the same time. For attention maps: "
    "saccade quickstart --backbone vit_micro_patch8."
)


@dataclasses.dataclass(frozen=True)
class QuickstartResult:
    """Run folder, report and evaluation of the quick start."""

    run: Path
    dino: Path
    data: Path
    report: Path
    evaluation: EvalReport
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "dino": str(self.dino),
            "data": str(self.data),
            "report": str(self.report),
            "seconds": round(self.seconds, 1),
            "evaluation": self.evaluation.to_dict(),
        }

    def _repr_html_(self) -> str:
        return frames.text_to_html(self.text())

    def text(self) -> str:
        return "\n".join(
            [
                to_text(self.evaluation),
                "",
                f"The tissue is drawn, not real: the images are in {self.data}.",
                f"{self.seconds / 60:.1f} minutes. Open the report: {self.report}",
                "Next, your own images: saccade pretrain FOLDER --out RUN, then saccade evaluate RUN FOLDER",
            ]
        )


def draw_tissue(folder: Path) -> Path:
    """Write the synthetic tissue as PNG files with a table of labels, patients and split; returns the folder."""
    source = open_source(DRAWN)
    folder.mkdir(parents=True)
    rows = ["path,label,split,group"]
    for index, record in enumerate(source.records):
        name = f"{index:04d}.png"
        Image.fromarray(source.read(index).pixels.transpose(1, 2, 0)).save(folder / name)
        rows.append(f"{name},{record.label},{record.split},{record.group}")
    write_text(folder / TABLE, "\n".join(rows) + "\n")
    return folder


def quickstart(
    out: str | Path = "saccade-quickstart",
    *,
    minutes: float = 1.2,
    backbone: str | None = None,
    console: Console | None = None,
) -> QuickstartResult:
    """Pretrain on synthetic tissue as saccade chooses and with DINO, evaluate both beside random weights, report.

    Parameters
    ----------
    out : str or Path
        New folder; the images are ``out/tissue``, the runs ``out/run`` and ``out/dino``.
    minutes : float
        Pretraining time of each run, start-up included.
    backbone : str, optional
        Architecture of both runs; None: the choice of ``auto``.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    QuickstartResult
    """
    start = time.perf_counter()
    folder = Path(out)
    console = console or Quiet()
    prepare(folder, resume=False)
    data = draw_tissue(folder / "tissue")
    settings = SETTINGS | {"train.minutes": minutes}
    run = pretrain(data, out=folder / "run", backbone=backbone, settings=settings, console=console)
    resolved = load_config(run)
    name = resolved.model.backbone
    dino = pretrain(data, out=folder / "dino", method="dino", backbone=name, settings=settings, console=console)
    notes = {"drawn": DRAWN}
    if backbone is None:
        notes["why_network"] = WHY_NETWORK.format(backbone=name, method=resolved.train.method)
    write_json(run / "notes.json", notes)
    write_json(dino / "notes.json", {"drawn": DRAWN})
    evaluation = evaluate([run, dino], data, out=run, console=console)
    return QuickstartResult(run, dino, data, run / "report.html", evaluation, time.perf_counter() - start)
