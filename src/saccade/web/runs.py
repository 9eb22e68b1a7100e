"""The page of runs: which there are, how they go while they go, what they are worth, and how they differ."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from saccade.reporting.build import headline, title_of
from saccade.reporting.evaluation import Evaluation
from saccade.reporting.files import RunFiles, last, mapping, read_run
from saccade.reporting.page import number
from saccade.web import folders
from saccade.web.desk import Desk, RunOnDesk
from saccade.web.live import Tail, Watch, plain, said
from saccade.web.security import REPORT_POLICY
from saccade.web.typed import evaluate_command

PAUSE_SECONDS, QUIET_SECONDS, PING_SECONDS = 0.5, 90, 10
AT_ONCE = 8


def router(desk: Desk) -> APIRouter:
    api = APIRouter()

    @api.get("/runs")
    def listed() -> list[dict[str, Any]]:
        return [summary(run) for run in desk.runs]

    @api.get("/runs/{key}")
    def one(key: str) -> dict[str, Any]:
        run = desk.run(key)
        files = read_run(run.folder)
        return summary(run) | {
            "evaluate": evaluate_command(run.folder),
            "settings": flat(files.config),
            "evaluation": _evaluation(files.evaluation),
            "grey": _evaluation(files.evaluation_grey),
            "repairs": [plain(one) for one in files.repairs],
        }

    @api.get("/runs/{key}/report")
    def report(key: str) -> Response:
        path = desk.run(key).folder / "report.html"
        if not path.is_file():
            raise HTTPException(404, "this run has no report yet: saccade report RUN writes one")
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    @api.get("/live")
    def live(runs: str) -> StreamingResponse:
        """One stream for several runs (ids with commas): browsers allow six connections to one server."""
        chosen = [desk.run(key) for key in runs.split(",")[:AT_ONCE]]
        return StreamingResponse(_events(chosen), media_type="text/event-stream")

    return api


def summary(run: RunOnDesk) -> dict[str, Any]:
    files = read_run(run.folder)
    step, knn = last(files, "step"), last(files, "knn")
    metrics = run.folder / "metrics.jsonl"
    quiet = time.time() - metrics.stat().st_mtime if metrics.exists() else math.inf
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
        "axes": folders.axes_of(run.folder),
        "running": quiet < QUIET_SECONDS and not (run.folder / "model" / "config.json").is_file(),
        "report": (run.folder / "report.html").is_file(),
    }


def _measured_on(files: RunFiles) -> str | None:
    """The data of the evaluation where they are others than the run learned from; None where nobody wrote them down."""
    other = files.evaluation.protocol.get("data") if files.evaluation is not None else None
    source = str(files.setting("data", "source") or "")
    if not isinstance(other, str) or other == source:
        return None
    return folders.told_apart([other, source])[0]


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
        return folders.named(value)
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
        "one_group": found.protocol.get("units_test") == 1,
        "overlap": bool(found.protocol.get("overlap")),
        "rows": rows,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(number(value)) else value


async def _events(runs: list[RunOnDesk]) -> AsyncIterator[str]:
    """Lines of all runs as they are, then new ones until the page is left; what the doctor says of each."""
    tails = {run.id: Tail(run.folder / "metrics.jsonl") for run in runs}
    watches = {run.id: Watch(read_run(run.folder)) for run in runs}
    heard = time.monotonic()
    yield ": here\n\n"
    while True:
        for run in runs:
            anew, lines = await run_in_threadpool(tails[run.id].read)
            if anew:
                watches[run.id] = Watch(read_run(run.folder))
            if not lines and not anew:
                continue
            ill = await run_in_threadpool(_illnesses, watches[run.id], lines)
            body = {"run": run.id, "anew": anew, "lines": [plain(line) for line in lines], "doctor": ill}
            yield f"event: lines\ndata: {json.dumps(body)}\n\n"
            heard = time.monotonic()
        if time.monotonic() - heard > PING_SECONDS:
            yield ": still here\n\n"  # notices a page that has gone
            heard = time.monotonic()
        await asyncio.sleep(PAUSE_SECONDS)


def _illnesses(watch: Watch, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [said(one) for line in lines for one in watch.look(line)]
