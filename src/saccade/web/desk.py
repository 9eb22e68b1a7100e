"""What lies on the desk: the runs, models, images and uploads that the page may show, under opaque ids.

One object, made by the command and handed to every router. A browser names things by ids only; an id that was never
handed out leads nowhere, so there is no path to traverse. No torch here.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from starlette.exceptions import HTTPException

from saccade.contracts import Record, Sample, Source
from saccade.data.decode import decode
from saccade.data.open import open_source
from saccade.data.slides.grid import Tiling
from saccade.data.slides.source import SlideTiles
from saccade.errors import SaccadeError, UsageError

if TYPE_CHECKING:
    from saccade.explore import Explorer
    from saccade.explore_slides import SlideLooks

UPLOADS_BYTES = 256 * 2**20
UPLOAD_PIXELS = 64_000_000


@dataclass(frozen=True)
class Upload:
    """A file that came from the browser; kept in memory, never written."""

    name: str
    data: bytes


class Uploads:
    """The newest uploads, so many bytes of them."""

    def __init__(self, limit_bytes: int = UPLOADS_BYTES):
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, data: bytes) -> str:
        key = secrets.token_hex(8)
        with self._lock:
            self._kept[key] = Upload(name[:200], data)
            while len(self._kept) > 1 and sum(len(u.data) for u in self._kept.values()) > self.limit_bytes:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Upload | None:
        return self._kept.get(key)


@dataclass(frozen=True)
class RunOnDesk:
    """A run folder; ``name`` is what people see, ``id`` what the page says."""

    id: str
    name: str
    folder: Path


@dataclass(frozen=True)
class ModelOnDesk:
    """A model that can be asked. ``fresh``: its network with random weights, to compare with.

    axes   of what it looks at: 2 images, 3 volumes, 0 grids of vectors
    """

    id: str
    name: str
    model: str
    fresh: bool = False
    run: str | None = None
    axes: int = 2


@dataclass(frozen=True)
class ImageOnDesk:
    """One image of a run's data, by its number in the source."""

    id: str
    run: RunOnDesk
    index: int
    record: Record


@dataclass
class Desk:
    """runs      the run folders that were named, or found under the current folder
    models    names of models beside those of the runs: ``random:NAME``, ``timm:NAME``, a weights file
    tables    feature tables beside those of the runs
    secret    of this session; ids are made with it
    """

    runs: Sequence[RunOnDesk]
    models: Sequence[str] = ()
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    uploads: Uploads = field(default_factory=Uploads)
    tables: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._sources: dict[str, Source] = {}
        self._images: dict[str, ImageOnDesk] = {}
        self._opening = threading.Lock()

    @cached_property
    def explorer(self) -> Explorer:
        """What models are asked through. The first use imports torch."""
        from saccade.explore import Explorer

        return Explorer()

    @cached_property
    def slide_looks(self) -> SlideLooks:
        """Features of slides. The first use imports torch."""
        from saccade.explore_slides import SlideLooks

        return SlideLooks(self.explorer)

    def id_of(self, kind: str, name: str) -> str:
        """Sixteen hexadecimal digits that say nothing of the name; the same name has the same id in a session."""
        return opaque(self.secret, kind, name)

    def run(self, key: str) -> RunOnDesk:
        """The run with this id. HTTP 404 where there is none."""
        found = next((run for run in self.runs if run.id == key), None)
        if found is None:
            raise HTTPException(404, "no such run")
        return found

    def choices(self) -> list[ModelOnDesk]:
        """All models: of each run the trained one and its twin with random weights, then the others that were named."""
        found = []
        for run in self.runs:
            if (run.folder / "model" / "config.json").is_file():
                path, axes = str(run.folder), axes_of(run.folder)
                found.append(ModelOnDesk(self.id_of("model", path), run.name, path, run=run.id, axes=axes))
                twin, name = self.id_of("twin", path), f"{run.name}, random weights"
                found.append(ModelOnDesk(twin, name, path, fresh=True, run=run.id, axes=axes))
        for name in dict.fromkeys(self.models):
            if is_text_model(name):
                continue  # the page of sentences asks those
            shown = name if name.startswith(("random:", "timm:")) else Path(name).name
            found.append(ModelOnDesk(self.id_of("model", name), shown, name))
        return found

    def model(self, key: str) -> ModelOnDesk:
        """The model with this id. HTTP 404 where there is none."""
        found = next((one for one in self.choices() if one.id == key), None)
        if found is None:
            raise HTTPException(404, "no such model")
        return found

    def source(self, run: RunOnDesk) -> Source:
        """The images that a run learned from, opened once. Raises DataError where they are no longer there."""
        with self._opening:
            if run.id not in self._sources:
                data = (yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8")) or {}).get(
                    "data"
                ) or {}
                if not data.get("source"):
                    raise UsageError("the run does not say what it learned from", got=run.name)
                columns = {key: data.get(key) or None for key in ("manifest", "label", "group")}
                tiling = Tiling(data.get("mpp") or None, data.get("tile_px") or None, data.get("tissue") or None)
                tiling = dataclasses.replace(tiling, slide_mpp=data.get("slide_mpp") or None, usual=True)
                self._sources[run.id] = open_source(data["source"], tiling=tiling, **columns)
            return self._sources[run.id]

    def slides(self, run: RunOnDesk) -> SlideTiles | None:
        """The slides that a run learned from; None where it learned from something else, or they are gone."""
        try:
            settings = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
            if not (settings.get("data") or {}).get("mpp"):
                return None
            return slides_in(self.source(run))
        except (OSError, AttributeError, yaml.YAMLError, SaccadeError):
            return None

    def images(self, run: RunOnDesk, start: int, count: int) -> tuple[int, list[ImageOnDesk]]:
        """How many images a run has, and some of them."""
        records = self.source(run).records
        found = []
        for index in range(max(0, start), min(len(records), start + count)):
            key = self.id_of("image", f"{run.id}/{index}")
            found.append(self._images.setdefault(key, ImageOnDesk(key, run, index, records[index])))
        return len(records), found

    def sample(self, key: str) -> Sample:
        """An image, a volume or an upload. HTTP 404 where there is none; DamagedFile, DataError."""
        upload = self.uploads.get(key)
        if upload is not None:
            return Sample(decode(upload.data, upload.name), Record(upload.name))
        image = self._images.get(key)
        if image is None:
            raise HTTPException(404, "no such image")
        return self.source(image.run).read(image.index)


def is_text_model(name: str) -> bool:
    """Whether a MODEL is a folder of the transformers library."""
    config = Path(name) / "config.json"
    try:
        return config.is_file() and "model_type" in json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False


def slides_in(source: Source) -> SlideTiles | None:
    return source if isinstance(source, SlideTiles) else None


def opaque(secret: bytes, kind: str, name: str) -> str:
    return hmac.digest(secret, f"{kind}\0{name}".encode(errors="surrogatepass"), "sha256").hex()[:16]


def axes_of(folder: Path) -> int:
    """Of what a run's model looks at, as its files say: 2 images (or nothing known), 3 volumes, 0 grids of vectors."""
    try:
        seen = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["input"]
    except (OSError, ValueError, KeyError):
        return 2
    return 0 if seen.get("grid") else int(seen.get("axes", 2))


def lay_out(folders: Sequence[Path], models: Sequence[str] = (), tables: Sequence[str] = ()) -> Desk:
    """A desk with these runs. Runs of one folder name are told apart by the folder above."""
    secret = secrets.token_bytes(32)
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    twice = {p.name for p in paths if sum(other.name == p.name for other in paths) > 1}
    runs = [
        RunOnDesk(opaque(secret, "run", str(p)), f"{p.parent.name}/{p.name}" if p.name in twice else p.name, p)
        for p in paths
    ]
    return Desk(runs, tuple(models), secret, tables=tuple(tables))


def runs_below(folder: Path, depth: int = 3) -> list[Path]:
    """Run folders under a folder, newest first; hidden folders and the insides of runs are left out."""
    found, level = [], [folder]
    for _ in range(depth + 1):
        deeper = []
        for place in level:
            if (place / "config.yaml").is_file():
                found.append(place)
                continue
            try:
                deeper += [p for p in sorted(place.iterdir()) if p.is_dir() and not p.name.startswith(".")]
            except OSError:
                continue
        level = deeper
    return sorted(found, key=lambda p: (p / "config.yaml").stat().st_mtime, reverse=True)
