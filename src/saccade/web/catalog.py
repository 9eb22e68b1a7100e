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

from starlette.exceptions import HTTPException

from saccade.base.contracts import Record, Sample, Source
from saccade.data.images.decode import decode
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.volumes.nifti import read_nifti
from saccade.errors import SaccadeError
from saccade.web import discover

if TYPE_CHECKING:
    from saccade.attention.explorer import Explorer
    from saccade.attention.explorer_slides import SlideLooks
    from saccade.hierarchy.explorer import RegionLooks

UPLOADS_BYTES = 256 * 2**20
UPLOAD_PIXELS = 64_000_000  # of an image, or voxels of a volume
VOLUMES = (".nii", ".nii.gz")


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
class HierarchyOnDesk:
    """A hierarchy over slides. ``folder``: its own; ``head``: the run of ``finetune`` whose head weighs the regions.

    tile    MODEL of its tile level
    fault   why it cannot be shown, in words; empty where it can
    """

    id: str
    name: str
    folder: Path
    tile: str = ""
    head: Path | None = None
    fault: str = ""


OnDesk = RunOnDesk | HierarchyOnDesk


def _learner(run: OnDesk) -> Path:
    """The folder whose slides are shown: a head's own, where there is one."""
    return (run.head if isinstance(run, HierarchyOnDesk) else None) or run.folder


@dataclass(frozen=True)
class Missing:
    """A slide that cannot be shown, and why; ``of``: the run or hierarchy."""

    of: str
    name: str
    reason: str


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
    run: OnDesk
    index: int
    record: Record


@dataclass
class Desk:
    """runs         the run folders that were named, or found under the current folder; levels of hierarchies too
    hierarchies  over slides, and heads that were trained on one
    models       names of models beside those of the runs: ``random:NAME``, ``timm:NAME``, a weights file
    tables       feature tables beside those of the runs
    secret       of this session; ids are made with it
    """

    runs: Sequence[RunOnDesk]
    models: Sequence[str] = ()
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    uploads: Uploads = field(default_factory=Uploads)
    tables: Sequence[str] = ()
    hierarchies: Sequence[HierarchyOnDesk] = ()

    def __post_init__(self) -> None:
        self._sources: dict[Path, Source] = {}
        self._slides: dict[str, tuple[OnDesk, int]] = {}
        self._images: dict[str, ImageOnDesk] = {}
        self._opening = threading.Lock()

    @cached_property
    def explorer(self) -> Explorer:
        """What models are asked through. The first use imports torch."""
        from saccade.attention.explorer import Explorer

        return Explorer()

    @cached_property
    def slide_looks(self) -> SlideLooks:
        """Features of slides. The first use imports torch."""
        from saccade.attention.explorer_slides import SlideLooks

        return SlideLooks(self.explorer)

    @cached_property
    def region_looks(self) -> RegionLooks:
        """What hierarchies see on slides. The first use imports torch."""
        from saccade.hierarchy.explorer import RegionLooks

        return RegionLooks()

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
                path, axes = str(run.folder), discover.axes_of(run.folder)
                found.append(ModelOnDesk(self.id_of("model", path), run.name, path, run=run.id, axes=axes))
                twin, name = self.id_of("twin", path), f"{run.name}, random weights"
                found.append(ModelOnDesk(twin, name, path, fresh=True, run=run.id, axes=axes))
        others = [
            name for name in dict.fromkeys(self.models) if not is_text_model(name)
        ]  # those: the page of sentences
        named = zip(others, model_names(others))
        found += [ModelOnDesk(self.id_of("model", name), shown, name) for name, shown in named]
        names = discover.numbered([one.name for one in found], found)
        return [dataclasses.replace(one, name=name) for one, name in zip(found, names)]

    def model(self, key: str) -> ModelOnDesk:
        """The model with this id. HTTP 404 where there is none."""
        found = next((one for one in self.choices() if one.id == key), None)
        if found is None:
            raise HTTPException(404, "no such model")
        return found

    def model_id(self, name: str) -> str | None:
        """The id of a MODEL as it was trained; None where it is not among the choices."""
        return next((one.id for one in self.choices() if one.model == name and not one.fresh), None)

    def source(self, run: OnDesk) -> Source:
        """The images that a run or a hierarchy learned from, opened once. DataError where they are no longer there."""
        with self._opening:
            place = _learner(run)
            if place not in self._sources:
                if isinstance(run, HierarchyOnDesk):
                    self._sources[place] = discover.open_layered(run.folder, run.head)
                else:
                    self._sources[place] = discover.open_run(run.folder)
            return self._sources[place]

    def slides(self, run: OnDesk) -> SlideTiles | None:
        """The slides that a run learned from; None where it learned from something else, or they are gone."""
        return self._try_slides(run)[0]

    def _try_slides(self, run: OnDesk) -> tuple[SlideTiles | None, str]:
        """The slides of a run, or why there are none; both empty where it did not learn from slides."""
        if isinstance(run, HierarchyOnDesk):
            if run.fault:
                return None, run.fault
        elif not discover.learned_from_slides(run.folder):
            return None, ""
        try:
            found = self.source(run)
        except SaccadeError as error:
            return None, discover.told(error)
        except OSError as error:
            return None, error.strerror or type(error).__name__
        return (found, "") if isinstance(found, SlideTiles) else (None, "")

    def all_slides(self) -> tuple[list[tuple[str, OnDesk, str]], list[Missing]]:
        """Every slide (id, of whom, name), those of hierarchies first, and those that cannot be shown."""
        found: list[tuple[str, OnDesk, str]] = []
        missing: list[Missing] = []
        owners: list[OnDesk] = [*self.hierarchies, *self.runs]
        for run in owners:
            tiles, fault = self._try_slides(run)
            if tiles is None and not fault:
                continue
            known = discover.slides_recorded(_learner(run))
            if tiles is None:
                missing += [Missing(run.name, name, fault) for name in discover.told_apart(known) or ["all slides"]]
                continue
            names, faults = [one.record.id for one in tiles.entries], dict(tiles.unreadable)
            every = list(dict.fromkeys([*names, *faults, *known]))
            shown = dict(zip(every, discover.told_apart(every)))
            for number, name in enumerate(names):
                key = self.id_of("slide", f"{run.id}/{number}")
                self._slides[key] = run, number
                found.append((key, run, shown[name]))
            faults |= {name: "the file is no longer there" for name in known if name not in {*names, *faults}}
            missing += [Missing(run.name, shown[name], discover.without_places(why)) for name, why in faults.items()]
        return found, missing

    def slide(self, key: str) -> tuple[OnDesk, SlideTiles, int]:
        """The slide with this id: of whom, among which slides, and its number there. HTTP 404 where there is none."""
        if key not in self._slides:
            self.all_slides()
        if key in self._slides:
            run, number = self._slides[key]
            tiles = self.slides(run)
            if tiles is not None:
                return run, tiles, number
        raise HTTPException(404, "no such slide")

    def images(self, run: OnDesk, start: int, count: int) -> tuple[int, list[ImageOnDesk]]:
        """How many images a run has, and some of them."""
        records = self.source(run).records
        found = []
        for index in range(max(0, start), min(len(records), start + count)):
            key = self.id_of("image", f"{run.id}/{index}")
            found.append(self._images.setdefault(key, ImageOnDesk(key, run, index, records[index])))
        return len(records), found

    def image(self, key: str) -> ImageOnDesk | Upload:
        """What an id of this session stands for. HTTP 404 where that is nothing, or an upload that had to make room."""
        found = self.uploads.get(key) or self._images.get(key)
        if found is None:
            raise HTTPException(404, "no such image")
        return found

    def sample(self, key: str) -> Sample:
        """An image, a volume or an upload. HTTP 404 where there is none; DamagedFile, DataError."""
        found = self.image(key)
        if isinstance(found, Upload):
            return read_upload(found.data, found.name)
        return self.source(found.run).read(found.index)


def read_upload(data: bytes, name: str) -> Sample:
    """An image, or a volume where the name ends as NIfTI does. DamagedFile, naming it."""
    if not name.lower().endswith(VOLUMES):
        return Sample(decode(data, name), Record(name))
    found = read_nifti(data, name, most_voxels=UPLOAD_PIXELS)
    return Sample(found.pixels, Record(name), spacing_mm=found.spacing_mm, affine=found.affine, modality=found.modality)


def model_names(models: Sequence[str]) -> list[str]:
    """What people see of these MODELs: registered names as they are, of files and folders a short name each."""
    places = [name for name in models if not name.startswith(("random:", "timm:"))]
    short = dict(zip(places, discover.short_names([Path(name).resolve() for name in places])))
    return [short.get(name, name) for name in models]


def is_text_model(name: str) -> bool:
    """Whether a MODEL is a folder of the transformers library."""
    config = Path(name) / "config.json"
    try:
        return config.is_file() and "model_type" in json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False


def opaque(secret: bytes, kind: str, name: str) -> str:
    return hmac.digest(secret, f"{kind}\0{name}".encode(errors="surrogatepass"), "sha256").hex()[:16]


def lay_out(places: Sequence[Path], models: Sequence[str] = (), tables: Sequence[str] = ()) -> Desk:
    """A desk with these runs, hierarchies and heads. Those of one folder name are told apart by a folder above.

    The levels of a hierarchy are runs and models of their own, called HIERARCHY/LEVEL.
    """
    secret = secrets.token_bytes(32)
    paths = list(dict.fromkeys(folder.resolve() for folder in places))
    read, faults = _layered([path for path in paths if discover.is_layered(path)])
    every = list(dict.fromkeys([*paths, *(one.folder.resolve() for one in read.values())]))
    names = dict(zip(every, discover.short_names(every)))
    runs: dict[Path, str] = {}
    hierarchies, more = [], []
    for path in paths:
        if path in faults:
            key = opaque(secret, "hierarchy", str(path))
            hierarchies.append(HierarchyOnDesk(key, names[path], path, fault=faults[path]))
        elif path in read:
            found, key = read[path], opaque(secret, "hierarchy", str(path))
            hierarchies.append(HierarchyOnDesk(key, names[path], found.folder, found.tile, found.head))
            for level in found.levels:
                if discover.is_run(Path(level)):
                    runs.setdefault(Path(level), f"{names[found.folder.resolve()]}/{Path(level).name}")
                else:
                    more.append(level)
        else:
            runs[path] = names[path]
    shown = discover.numbered(list(runs.values()), list(runs))
    laid = [RunOnDesk(opaque(secret, "run", str(path)), name, path) for path, name in zip(runs, shown)]
    return Desk(laid, tuple(dict.fromkeys((*more, *models))), secret, tables=tuple(tables), hierarchies=hierarchies)


def _layered(paths: Sequence[Path]) -> tuple[dict[Path, discover.HierarchyFolder], dict[Path, str]]:
    """What hierarchies and heads say of themselves, and of those that cannot be read why."""
    read, faults = {}, {}
    for path in paths:
        try:
            read[path] = discover.read_layered(path)
        except SaccadeError as error:
            faults[path] = discover.told(error)
    return read, faults
