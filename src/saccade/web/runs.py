"""The page of runs: which there are, how they go, what they are worth."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from saccade.reporting.build import headline, title_of
from saccade.reporting.files import last, read_run
from saccade.web.desk import Desk, RunOnDesk


def router(desk: Desk) -> APIRouter:
    api = APIRouter(prefix="/runs")

    @api.get("")
    def listed() -> list[dict[str, Any]]:
        return [_summary(run) for run in desk.runs]

    return api


def _summary(run: RunOnDesk) -> dict[str, Any]:
    files = read_run(run.folder)
    step = last(files, "step")
    return {
        "id": run.id,
        "name": run.name,
        "title": title_of(files),
        "headline": headline(files),
        "step": int(step) if step == step else 0,
        "steps": files.setting("train", "steps"),
        "method": files.setting("train", "method"),
        "backbone": files.setting("model", "backbone"),
        "data": str(files.setting("data", "source") or ""),
    }
