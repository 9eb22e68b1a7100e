"""A process that does what it is told, one line of JSON at a time: ``python -m saccade.study.worker OUT THREADS``.

Its answers go to stdout, a line each; what libraries print goes to stderr. When stdin is closed it ends at once, also
in the middle of a cell: whoever asked is gone, and a study that goes on meanwhile would find two at work in one folder.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saccade.errors import SaccadeError


def answer(task: dict[str, Any], out: Path, images: Any, study: Any) -> Any:
    from saccade.study.budget import price, random_drift
    from saccade.study.cell import run_cell
    from saccade.study.design import Cell

    if task["kind"] == "price":
        return price(study, images, task["backbone"])
    if task["kind"] == "drift":
        return random_drift(study, images, task["backbone"])
    return run_cell(out, study, images, Cell(**task["cell"]), with_drift=task["with_drift"])


def tasks() -> Iterator[dict[str, Any]]:
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            waiting.put(line)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield json.loads(waiting.get())


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr
    out, threads = Path(sys.argv[1]), int(sys.argv[2])
    import torch

    from saccade import runtime
    from saccade.study.design import recall
    from saccade.study.images import load

    torch.set_num_threads(threads)
    runtime.keep_freed_memory()
    study, images = recall(out), load(out)
    for task in tasks():
        try:
            reply: dict[str, Any] = {"found": answer(task, out, images, study)}
        except SaccadeError as error:
            reply = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
