"""The page of runs: which there are, how they go while they go, what they are worth, and how they differ."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from saccade.errors import UsageError
from saccade.evaluation.small_samples import few_units
from saccade.reporting.html import number
from saccade.reporting.run_files import RunFiles, last, mapping
from saccade.reporting.run_report import headline, title_of
from saccade.reporting.section_evaluation import Evaluation
from saccade.web import discover
from saccade.web.catalog import Desk, RunOnDesk
from saccade.web.live import Tail, Watch, plain, said
from saccade.web.security import REPORT_POLICY
from saccade.web.shell_commands import evaluate_command

PAUSE_SECONDS, QUIET_SECONDS, PING_SECONDS = 0.5, 90, 10
AT_ONCE = 8
TOLD_BY = ("config.yaml", "data.json", "evaluation.json", "classifier.json", "model/config.json", "report.html")


def router(desk: Desk) -> APIRouter:
    api = APIRouter()

    @api.get("/runs")
    def listed() -> list[dict[str, Any]]:
        return [discover.spelt(card_of(run, _read(run))) for run in desk.runs]

    @api.get("/runs/{key}")
    def one(key: str) -> dict[str, Any]:
        run = desk.run(key)
        files = discover.files_of(run.folder)
        about = summary(run, files) | {
            "evaluate": evaluate_command(run.folder),
            "settings": flat(files.config),
            "evaluation": _evaluation(files.evaluation),
            "grey": _evaluation(files.evaluation_grey),
            "repairs": [plain(one) for one in files.repairs],
        }
        return dict(discover.spelt(about))

    @api.get("/runs/{key}/report")
    def report(key: str) -> Response:
        path = desk.run(key).folder / "report.html"
        if not path.is_file():
            raise HTTPException(404, "this run has no report yet: saccade report RUN writes one")
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    @api.get("/live")
    def live(runs: str = "") -> StreamingResponse:
        """One stream for several runs (ids with commas): browsers allow six connections to one server.

        Of the chosen runs come lines and cards; of others that are running now, cards only.
        """
        chosen = [desk.run(key) for key in runs.split(",") if key][:AT_ONCE]
        beside = [run for run in desk.runs if run not in chosen and _running(run.folder)][:AT_ONCE]
        return StreamingResponse(_events(chosen, beside), media_type="text/event-stream")

    return api


def _finished(folder: Path) -> bool:
    return (folder / "model" / "config.json").is_file()


def _running(folder: Path) -> bool:
    try:
        quiet = time.time() - (folder / "metrics.jsonl").stat().st_mtime
    except OSError:
        return False
    return quiet < QUIET_SECONDS and not _finished(folder)


def _read(run: RunOnDesk) -> RunFiles | None:
    """The files of a run; None where it has gone since the page was opened."""
    try:
        return discover.files_of(run.folder)
    except UsageError:
        return None


def card_of(run: RunOnDesk, files: RunFiles | None) -> dict[str, Any]:
    """What the card of a run says; of one that has gone (None) only that, and that it has no images (``axes`` 0)."""
    return summary(run, files) if files is not None else {"id": run.id, "name": run.name, "axes": 0, "gone": True}


def summary(run: RunOnDesk, files: RunFiles) -> dict[str, Any]:
    """What the card of a run that is there says."""
    step, knn = last(files, "step"), last(files, "knn")
    return {
        "id": run.id,
        "name": run.name,
        "title": title_of(files),
        "headline": headline(files),
        "step": int(step) if math.isfinite(step) else 0,
        "steps": files.setting("train", "steps"),
        "knn": knn if math.isfinite(knn) else None,
        "data": named(files.setting("data", "source") or ""),
        "measured_on": _measured_on(files),
        "axes": discover.axes_of(run.folder),
        "running": _running(run.folder),
        "finished": _finished(run.folder),
        "measured": files.evaluation is not None or bool(files.classifier),
        "report": (run.folder / "report.html").is_file(),
    }


def _measured_on(files: RunFiles) -> str | None:
    """The data of the evaluation where they are others than the run learned from; None where nobody wrote them down."""
    other = files.evaluation.protocol.get("data") if files.evaluation is not None else None
    source = str(files.setting("data", "source") or "")
    if not isinstance(other, str) or other == source:
        return None
    return discover.told_apart([other, source])[0]


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """``{"train": {"steps": 3}}`` as ``{"train.steps": 3}``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = named(value)
    return found


def named(value: Any) -> Any:
    """A setting for the page: of a path only its last part, as where things lie here is nobody's business."""
    if isinstance(value, str):
        return discover.named(value)
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _evaluation(found: Evaluation | None) -> dict[str, Any] | None:
    if found is None:
        return None
    keys = ("model", "probe", "fraction", "mean", "low", "high", "n_train", "repeats", "k")
    rows = [{key: _finite(row.get(key)) for key in keys if key in row} for row in found.rows]
    return {
        "metric": found.metric,
        "primary": found.primary,
        "models": list(found.models),
        "probes": list(found.probes),
        "fractions": list(found.fractions),
        "protocol": str(mapping(found.protocol).get("text") or ""),
        "few": few_units(found.protocol),
        "one_group": found.protocol.get("units_test") == 1,
        "overlap": bool(found.protocol.get("overlap")),
        "rows": rows,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(number(value)) else value


class Followed:
    """A run while the page is open: what is new in it since the last time."""

    def __init__(self, run: RunOnDesk):
        self.run = run
        self._tail = Tail(run.folder / "metrics.jsonl")
        self._stamps: list[tuple[int, int] | None] = []
        self._newest: dict[str, Any] = {}  # the last value of every figure, which is all that a card needs of them
        self._card: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        self._files = _read(self.run)
        self._watch = None if self._files is None else Watch(self._files)

    def lines(self) -> dict[str, Any] | None:
        """New lines and what the doctor says of them; None where nothing was written."""
        anew, lines = self._tail.read()
        if anew:
            self._newest = {}
        if anew or (lines and self._watch is None):
            self._read()
        for line in lines:
            self._newest |= {key: value for key, value in line.items() if math.isfinite(number(value))}
        if not lines and not anew:
            return None
        ill = [said(one) for line in lines for one in self._watch.look(line)] if self._watch is not None else []
        return {"run": self.run.id, "anew": anew, "lines": [plain(line) for line in lines], "doctor": ill}

    def card(self) -> dict[str, Any] | None:
        """The card after the lines that were read; None where it still says the same."""
        stamps = [discover.stamp(self.run.folder / name) for name in TOLD_BY]
        if stamps != self._stamps:
            self._files, self._stamps = _read(self.run), stamps
        files = self._files
        if files is not None:
            files = dataclasses.replace(files, metrics=[self._newest] if self._newest else [])
        card = card_of(self.run, files)
        if card == self._card:
            return None
        self._card = card
        return card


async def _events(chosen: list[RunOnDesk], beside: list[RunOnDesk]) -> AsyncIterator[str]:
    """Lines of the chosen runs as they are, then new ones until the page is left; the doctor's words; cards of all."""
    followed = [(await run_in_threadpool(Followed, run), run in chosen) for run in (*chosen, *beside)]
    heard = time.monotonic()
    yield ": here\n\n"
    while True:
        for one, whole in followed:
            lines = await run_in_threadpool(one.lines)
            card = await run_in_threadpool(one.card)
            for name, body in (("lines", lines if whole else None), ("card", card)):
                if body is not None:
                    yield f"event: {name}\ndata: {json.dumps(body)}\n\n"
                    heard = time.monotonic()
        if time.monotonic() - heard > PING_SECONDS:
            yield ": still here\n\n"  # notices a page that has gone
            heard = time.monotonic()
        await asyncio.sleep(PAUSE_SECONDS)
