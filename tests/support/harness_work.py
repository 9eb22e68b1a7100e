"""Functions that tests of the benchmark harness run in child processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def sleeper(seconds: float, images: int) -> Callable[[], int]:
    def work() -> int:
        time.sleep(seconds)
        return images

    return work


def raising() -> Callable[[], int]:
    raise ValueError("wrong shape")


def raising_later() -> Callable[[], int]:
    def work() -> int:
        raise RuntimeError("out of images")

    return work


def dying() -> None:
    os._exit(7)
