"""A worker process: one task per line of JSON on stdin, ``python -m saccade.study.worker OUT THREADS``.

Results go to stdout, one line each; what libraries print goes to stderr. The worker exits when stdin is closed, also
in the middle of a trial: its parent has ended, and a continued study must not find two workers in one folder.
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


def run_task(task: dict[str, Any], out: Path, images: Any, study: Any) -> Any:
    from saccade.study.budget import price, random_drift
    from saccade.study.design import Trial
    from saccade.study.trial import run_trial

    if task["kind"] == "price":
        return price(study, images, task["backbone"])
    if task["kind"] == "drift":
        return random_drift(study, images, task["backbone"])
    return run_trial(out, study, images, Trial(**task["trial"]), with_drift=task["with_drift"])


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
    from saccade.study.design import read_settings
    from saccade.study.images import load

    torch.set_num_threads(threads)
    runtime.keep_freed_memory()
    study, images = read_settings(out), load(out)
    for task in tasks():
        try:
            reply: dict[str, Any] = {"result": run_task(task, out, images, study)}
        except SaccadeError as error:
            reply = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
