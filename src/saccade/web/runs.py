"""The page of runs: cards, live curves, evaluations and differences of settings."""

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

from saccade.base.cache import LruCache
from saccade.base.places import base_name
from saccade.errors import UsageError
from saccade.evaluation.small_samples import few_units
from saccade.reporting.evaluation_results import Evaluation
from saccade.reporting.html import number
from saccade.reporting.run_files import RunFiles, last, mapping
from saccade.reporting.run_report import diagnoses, headline, title_of
from saccade.web import discover
from saccade.web.catalog import Catalog, CatalogRun
from saccade.web.live import Tail, Watch, diagnosis_record, plain
from saccade.web.security import REPORT_POLICY
from saccade.web.shell_commands import evaluate_command

PAUSE_SECONDS, QUIET_SECONDS, PING_SECONDS = 0.5, 90, 10
AT_ONCE = 8
CARD_FILES = ("config.yaml", "data.json", "evaluation.json", "classifier.json", "model/config.json", "report.html")


class Findings:
    """The doctor's findings by run; a run's figures are examined once for each state of its metrics.jsonl."""

    def __init__(self) -> None:
        self._findings: LruCache[tuple[Path, tuple[int, int] | None], list[dict[str, Any]]] = LruCache(256)

    def of(self, run: CatalogRun, files: RunFiles | None) -> list[dict[str, Any]]:
        key = run.folder, discover.stamp(run.folder / "metrics.jsonl")
        findings = self._findings.get(key)
        if findings is None:
            findings = [] if files is None else [diagnosis_record(diagnosis) for diagnosis in diagnoses(files)]
            self._findings.put(key, findings)
        return findings


def router(catalog: Catalog) -> APIRouter:
    api, findings = APIRouter(), Findings()

    @api.get("/runs")
    def listed() -> list[dict[str, Any]]:
        """The cards, with the doctor's findings as ``doctor``."""
        cards = []
        for run in catalog.runs:
            files = _read(run)
            cards.append(discover.encodable(card_of(run, files) | {"doctor": findings.of(run, files)}))
        return cards

    @api.get("/runs/{key}")
    def one(key: str) -> dict[str, Any]:
        run = catalog.run(key)
        files = discover.files_of(run.folder)
        about = summary(run, files) | {
            "doctor": findings.of(run, files),
            "evaluate": evaluate_command(run.folder),
            "settings": flat(files.config),
            "evaluation": _evaluation(files.evaluation),
            "grey": _evaluation(files.evaluation_grey),
            "repairs": [plain(repair) for repair in files.repairs],
        }
        return dict(discover.encodable(about))

    @api.get("/runs/{key}/report")
    def report(key: str) -> Response:
        path = catalog.run(key).folder / "report.html"
        if not path.is_file():
            raise HTTPException(404, "this run has no report yet: saccade report RUN writes one")
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    @api.get("/live")
    def live(runs: str = "") -> StreamingResponse:
        """One stream for several runs (comma-separated ids): browsers allow six connections to one server.

        Selected runs send lines and cards; other running runs send cards only.
        """
        chosen = [catalog.run(key) for key in runs.split(",") if key][:AT_ONCE]
        beside = [run for run in catalog.runs if run not in chosen and _running(run.folder)][:AT_ONCE]
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


def _read(run: CatalogRun) -> RunFiles | None:
    """The files of a run; None if it has disappeared."""
    try:
        return discover.files_of(run.folder)
    except UsageError:
        return None


def card_of(run: CatalogRun, files: RunFiles | None) -> dict[str, Any]:
    """The card of a run; of one that has disappeared (None) only that, and ``axes`` 0."""
    return summary(run, files) if files is not None else {"id": run.id, "name": run.name, "axes": 0, "gone": True}


def summary(run: CatalogRun, files: RunFiles) -> dict[str, Any]:
    """The card of an existing run."""
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
    """The data of the evaluation if they differ from the training data; None if not recorded."""
    other = files.evaluation.protocol.get("data") if files.evaluation is not None else None
    source = base_name(str(files.setting("data", "source") or ""))
    other = base_name(other) if isinstance(other, str) else other  # runs of 0.1 have paths
    if not isinstance(other, str) or other == source:
        return None
    return discover.distinct_names([other, source])[0]


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys.

    Examples
    --------
    >>> flat({"train": {"steps": 3}})
    {'train.steps': 3}
    """
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{before}{key}.")
        else:
            flattened[f"{before}{key}"] = named(value)
    return flattened


def named(value: Any) -> Any:
    """A setting for the page: the last part of a path only."""
    if isinstance(value, str):
        return discover.named(value)
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _evaluation(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    keys = ("model", "probe", "fraction", "mean", "low", "high", "n_train", "repeats", "k")
    rows = [{key: _finite(row.get(key)) for key in keys if key in row} for row in evaluation.rows]
    return {
        "metric": evaluation.metric,
        "primary": evaluation.primary,
        "models": list(evaluation.models),
        "probes": list(evaluation.probes),
        "fractions": list(evaluation.fractions),
        "protocol": str(mapping(evaluation.protocol).get("text") or ""),
        "few": few_units(evaluation.protocol),
        "one_group": evaluation.protocol.get("units_test") == 1,
        "overlap": bool(evaluation.protocol.get("overlap")),
        "rows": rows,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(number(value)) else value


class RunFollower:
    """A run while the page is open: what is new since the last call."""

    def __init__(self, run: CatalogRun):
        self.run = run
        self._tail = Tail(run.folder / "metrics.jsonl")
        self._stamps: list[tuple[int, int] | None] = []
        self._newest: dict[str, Any] = {}  # the last value of every figure, which is all that a card needs
        self._card: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        self._files = _read(self.run)
        self._watch = None if self._files is None else Watch(self._files)

    def lines(self) -> dict[str, Any] | None:
        """New lines and the doctor's findings on them; None if nothing was written."""
        anew, lines = self._tail.read()
        if anew:
            self._newest = {}
        if anew or (lines and self._watch is None):
            self._read()
        for line in lines:
            self._newest |= {key: value for key, value in line.items() if math.isfinite(number(value))}
        if not lines and not anew:
            return None
        ill = (
            [diagnosis_record(diagnosis) for line in lines for diagnosis in self._watch.look(line)]
            if self._watch is not None
            else []
        )
        return {"run": self.run.id, "anew": anew, "lines": [plain(line) for line in lines], "doctor": ill}

    def card(self) -> dict[str, Any] | None:
        """The card after the lines that were read; None if it is unchanged."""
        stamps = [discover.stamp(self.run.folder / name) for name in CARD_FILES]
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


async def _events(chosen: list[CatalogRun], beside: list[CatalogRun]) -> AsyncIterator[str]:
    """Lines of the chosen runs as they are, then new ones until the page is left; the doctor's words; cards of all."""
    followed = [(await run_in_threadpool(RunFollower, run), run in chosen) for run in (*chosen, *beside)]
    heard = time.monotonic()
    yield ": here\n\n"
    while True:
        for follower, complete in followed:
            lines = await run_in_threadpool(follower.lines)
            card = await run_in_threadpool(follower.card)
            for name, body in (("lines", lines if complete else None), ("card", card)):
                if body is not None:
                    yield f"event: {name}\ndata: {json.dumps(body)}\n\n"
                    heard = time.monotonic()
        if time.monotonic() - heard > PING_SECONDS:
            yield ": still here\n\n"  # notices a page that has gone
            heard = time.monotonic()
        await asyncio.sleep(PAUSE_SECONDS)
