"""Damaged files of every kind: an error of saccade that names the file, or a whole image; never anything else.

Mutants are a function of the kind and the number alone, so that a failure can be repeated. Text files of a run have
their own mutants in test_text_files.py, checkpoints, models and feature tables in test_damage.py.
"""

import logging
import random
import struct
import time
import warnings
from pathlib import Path

import pytest

from saccade.data.audit.images import audit
from saccade.data.cache.image_cache import build_cache
from saccade.data.open import open_source
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.tiling import Tiling
from saccade.errors import SaccadeError
from samples_of_formats import IMAGES, KINDS, SLIDES, VOLUMES, Kind

FEW, MANY, SECONDS = 5, 300, 5.0
HEADER = 600  # bytes at the beginning, which half of the changes are in
NUMBERS = [0, 1, 2, 7, 8, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Change, replace, remove, insert or cut bytes, one to four times."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        reach = min(len(changed), draw.choice([64, HEADER, len(changed), len(changed)]))
        at = draw.randrange(max(1, reach))
        kind = draw.choice(["flip", "flip", "byte", "number", "number", "zeros", "remove", "insert", "cut"])
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == "byte" and at < len(changed):
            changed[at] = draw.randrange(256)
        elif kind == "number":
            form = draw.choice(["<H", ">H", "<I", ">I"])
            number = draw.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == "zeros":
            count = draw.randint(1, 64)
            changed[at : at + count] = bytes(len(changed[at : at + count]))
        elif kind == "remove":
            del changed[at : at + draw.randint(1, 16)]
        elif kind == "insert":
            changed[at:at] = draw.randbytes(draw.randint(1, 16))
        elif draw.random() < 0.5:
            del changed[max(1, at) :]
    return bytes(changed)


def check_mutants(kind: Kind, folder: Path, numbers: range) -> None:
    path = folder / "data" / kind.name
    path.parent.mkdir()
    kind.write(path)
    kind.read(path)
    intact = kind.damaged_file(path).read_bytes()
    refused = 0
    for number in numbers:
        kind.damaged_file(path).write_bytes(mutate(intact, random.Random(f"{kind.name} {number}")))
        start = time.process_time()
        try:
            kind.read(path)
        except SaccadeError as error:
            refused += 1
            if str(path.parent) not in str(error) and path.name not in str(error):
                pytest.fail(f"{kind.name}, mutant {number} is not named: {error}")
        except Exception as error:
            pytest.fail(f"{kind.name}, mutant {number}: {type(error).__name__}: {error}")
        assert time.process_time() - start < SECONDS, f"{kind.name}, mutant {number}"
    assert refused or len(numbers) < MANY


@pytest.fixture(autouse=True)
def quiet():
    """What libraries say of damaged files is of no interest here."""
    logging.disable(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_few_mutants_of_every_kind(kind, tmp_path):
    check_mutants(kind, tmp_path, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_mutants_of_every_kind(kind, tmp_path):
    check_mutants(kind, tmp_path, range(MANY))


# Of an ImageJ stack the planes that are there are read (formats.md), also of a file that is cut.
COUNTED = [kind for kind in (*IMAGES, *VOLUMES) if not kind.mutable and kind.name != "imagej.tif"]


@pytest.mark.parametrize("kind", COUNTED, ids=lambda kind: kind.name)
def test_a_damaged_file_is_counted_in_its_folder(kind, tmp_path):
    kind.write(tmp_path / kind.name)
    data = (tmp_path / kind.name).read_bytes()
    (tmp_path / f"damaged-{kind.name}").write_bytes(data[: len(data) // 3])
    source = open_source(tmp_path)
    report = audit(source, max_bad=0.5)
    assert report.readable == 1 and len(report.damaged) == 1 and f"damaged-{kind.name}" in str(report.damaged)
    assert len(build_cache(source, cache_px=8, max_bad=0.5).damaged) == 1


@pytest.mark.parametrize("kind", [k for k in SLIDES if not k.mutable], ids=lambda kind: kind.name)
def test_a_damaged_slide_is_counted_in_its_folder(kind, tmp_path):
    kind.write(tmp_path / kind.name)
    data = (tmp_path / kind.name).read_bytes()
    damaged = {f"noise-{kind.name}": data[:8] + random.Random(0).randbytes(2000)}
    if kind.name != "slide.dcm":  # of files of one series the largest is the slide
        damaged[f"cut-{kind.name}"] = data[: len(data) // 3]
    for name, part in damaged.items():
        (tmp_path / name).write_bytes(part)
    tiles = open_source(tmp_path, tiling=Tiling(mpp=1.0, tile_px=64))
    assert isinstance(tiles, SlideTiles) and [entry.record.id for entry in tiles.entries] == [kind.name]
    assert {name for name, _ in tiles.unreadable} == set(damaged)
