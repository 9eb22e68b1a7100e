"""A process that reads tiles: ``python -m saccade.data.slides.tile_worker``, started by streaming.TileStore.

The first line on stdin is JSON: slides (path, given resolution, dark), ``slide_mpp``, resolution and side of a tile.
Each further line is ``slide x y``. The answer is one byte, 0 and the pixels [C Y X], or 1 and a line with the error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from saccade.base.contracts import Record
from saccade.data.slides.slide_pool import SlideEntry, SlidePool
from saccade.errors import SaccadeError


def main() -> None:
    request = json.loads(sys.stdin.readline())
    entries = [SlideEntry(Path(path), Record(id=path), mpp) for path, mpp, _ in request["slides"]]
    slides, side = (
        SlidePool(entries, request["slide_mpp"], [dark for _, _, dark in request["slides"]]),
        int(request["size_px"]),
    )
    channels, answer = int(request["channels"]), sys.stdout.buffer
    for line in sys.stdin:
        number, x, y = (int(word) for word in line.split())
        try:
            pixels = slides[number].read(x, y, mpp=request["mpp"], size_px=(side, side))
            if len(pixels) != channels:
                raise SaccadeError(f"{entries[number].path}: {len(pixels)} channels", expected=f"{channels}")
            answer.write(b"\0")
            answer.write(pixels.data)
        except SaccadeError as error:
            answer.write(b"\1" + error.in_one_line().encode() + b"\n")
        answer.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # whoever asked is gone
        main()
