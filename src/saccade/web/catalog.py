"""Everything the page may show: runs, hierarchies, models, images and uploads, under opaque ids.

One object, made by the command and passed to every router. A browser names things by ids only, and an unknown id leads
nowhere, so paths cannot be traversed. No torch here.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from saccade.base.cache import LruCache
from saccade.base.contracts import Record, Sample, Source
from saccade.data.images.decode import decode
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.volumes.nifti import read_nifti
from saccade.errors import SaccadeError
from saccade.web import discover

if TYPE_CHECKING:
    from saccade.attention.explorer import Explorer
    from saccade.attention.explorer_slides import SlideSimilarity
    from saccade.hierarchy.explorer import RegionViews

UPLOADS_BYTES = 256 * 2**20
UPLOAD_PIXELS = 64_000_000  # of an image, or voxels of a volume
VOLUMES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Upload:
    """A file from the browser; held in memory, never written."""

    name: str
    data: bytes


class Uploads:
    """The most recent uploads, up to ``limit_bytes``."""

    def __init__(self, limit_bytes: int = UPLOADS_BYTES):
        self._uploads: LruCache[str, Upload] = LruCache(limit_bytes)

    def add(self, name: str, data: bytes) -> str:
        key = secrets.token_hex(8)
        self._uploads.put(key, Upload(name[:200], data), len(data))
        return key

    def get(self, key: str) -> Upload | None:
        return self._uploads.get(key)


@dataclass(frozen=True)
class CatalogRun:
    """A run folder; ``name`` is displayed, ``id`` is used by the page."""

    id: str
    name: str
    folder: Path


@dataclass(frozen=True)
class CatalogHierarchy:
    """A hierarchy over slides.

    Parameters
    ----------
    folder : Path
        Of the hierarchy.
    tile : str
        MODEL of its tile level.
    head : Path, optional
        The run of ``saccade finetune`` whose head weights the regions.
    fault : str
        Why it cannot be shown; empty where it can.
    """

    id: str
    name: str
    folder: Path
    tile: str = ""
    head: Path | None = None
    fault: str = ""


CatalogFolder = CatalogRun | CatalogHierarchy


def _learner(run: CatalogFolder) -> Path:
    """The folder whose slides are shown: the head's if there is one."""
    return (run.head if isinstance(run, CatalogHierarchy) else None) or run.folder


@dataclass(frozen=True)
class MissingSlide:
    """A slide that cannot be shown, and why; ``of`` is the run or hierarchy."""

    of: str
    name: str
    reason: str


@dataclass(frozen=True)
class CatalogModel:
    """A model of the page; ``fresh`` is its network with random weights.

    axes : 2 images, 3 volumes, 0 grids of vectors.
    """

    id: str
    name: str
    model: str
    fresh: bool = False
    run: str | None = None
    axes: int = 2


@dataclass(frozen=True)
class CatalogImage:
    """One image of a run's data, by its index in the source."""

    id: str
    run: CatalogFolder
    index: int
    record: Record


@dataclass
class Catalog:
    """The runs, models and tables of one session.

    Parameters
    ----------
    runs : sequence of CatalogRun
        Run folders, levels of hierarchies included.
    models : sequence of str
        Models beside those of the runs: ``random:NAME``, ``timm:NAME`` or a weights file.
    secret : bytes
        Of this session; ids are made with it.
    uploads : Uploads
        Files from the browser.
    tables : sequence of str
        Feature tables beside those of the runs.
    hierarchies : sequence of CatalogHierarchy
        Hierarchies over slides, and heads trained on one.
    """

    runs: Sequence[CatalogRun]
    models: Sequence[str] = ()
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    uploads: Uploads = field(default_factory=Uploads)
    tables: Sequence[str] = ()
    hierarchies: Sequence[CatalogHierarchy] = ()

    def __post_init__(self) -> None:
        self._sources: dict[Path, Source] = {}
        self._slides: dict[str, tuple[CatalogFolder, int]] = {}
        self._images: dict[str, CatalogImage] = {}
        self._opening = threading.Lock()

    @cached_property
    def explorer(self) -> Explorer:
        """Runs models over images. The first use imports torch."""
        from saccade.attention.explorer import Explorer

        return Explorer()

    @cached_property
    def slide_similarity(self) -> SlideSimilarity:
        """Tile features of slides. The first use imports torch."""
        from saccade.attention.explorer_slides import SlideSimilarity

        return SlideSimilarity(self.explorer)

    @cached_property
    def region_views(self) -> RegionViews:
        """Region attention of hierarchies. The first use imports torch."""
        from saccade.hierarchy.explorer import RegionViews

        return RegionViews()

    def id_of(self, kind: str, name: str) -> str:
        """Sixteen hexadecimal digits that do not reveal the name; a name has one id per session."""
        return opaque(self.secret, kind, name)

    def run(self, key: str) -> CatalogRun:
        """The run with this id. HTTP 404 if there is none."""
        match_ = next((run for run in self.runs if run.id == key), None)
        if match_ is None:
            raise HTTPException(404, "no such run")
        return match_

    def choices(self) -> list[CatalogModel]:
        """All models: of each run the trained network and the same with random weights, then the others."""
        models = []
        for run in self.runs:
            if (run.folder / "model" / "config.json").is_file():
                path, axes = str(run.folder), discover.axes_of(run.folder)
                models.append(CatalogModel(self.id_of("model", path), run.name, path, run=run.id, axes=axes))
                twin, name = self.id_of("twin", path), f"{run.name}, random weights"
                models.append(CatalogModel(twin, name, path, fresh=True, run=run.id, axes=axes))
        others = [
            name for name in dict.fromkeys(self.models) if not is_text_model(name)
        ]  # those: the page of sentences
        named_models = zip(others, model_names(others))
        models += [CatalogModel(self.id_of("model", name), label, name) for name, label in named_models]
        names = discover.numbered([model.name for model in models], models)
        return [dataclasses.replace(model, name=name) for model, name in zip(models, names)]

    def model(self, key: str) -> CatalogModel:
        """The model with this id. HTTP 404 if there is none."""
        model = next((choice for choice in self.choices() if choice.id == key), None)
        if model is None:
            raise HTTPException(404, "no such model")
        return model

    def model_id(self, name: str) -> str | None:
        """The id of a MODEL with its trained weights; None if it is not in the catalog."""
        return next((choice.id for choice in self.choices() if choice.model == name and not choice.fresh), None)

    def source(self, run: CatalogFolder) -> Source:
        """The training images of a run or a hierarchy, opened once. Raises DataError if they are missing."""
        with self._opening:
            folder = _learner(run)
            if folder not in self._sources:
                if isinstance(run, CatalogHierarchy):
                    self._sources[folder] = discover.open_layered(run.folder, run.head)
                else:
                    self._sources[folder] = discover.open_run(run.folder)
            return self._sources[folder]

    def slides(self, run: CatalogFolder) -> SlideTiles | None:
        """The training slides of a run; None if it has none, or they are missing."""
        return self._try_slides(run)[0]

    def _try_slides(self, run: CatalogFolder) -> tuple[SlideTiles | None, str]:
        """The slides of a run, or why there are none; both empty for a run on other data."""
        if isinstance(run, CatalogHierarchy):
            if run.fault:
                return None, run.fault
        elif not discover.learned_from_slides(run.folder):
            return None, ""
        try:
            source = self.source(run)
        except SaccadeError as error:
            return None, discover.one_line(error)
        except OSError as error:
            return None, error.strerror or type(error).__name__
        return (source, "") if isinstance(source, SlideTiles) else (None, "")

    def all_slides(self) -> tuple[list[tuple[str, CatalogFolder, str]], list[MissingSlide]]:
        """Every slide as (id, owner, name), those of hierarchies first, and the slides that cannot be shown."""
        slides: list[tuple[str, CatalogFolder, str]] = []
        missing: list[MissingSlide] = []
        owners: list[CatalogFolder] = [*self.hierarchies, *self.runs]
        for run in owners:
            tiles, fault = self._try_slides(run)
            if tiles is None and not fault:
                continue
            recorded = discover.slides_recorded(_learner(run))
            if tiles is None:
                missing += [
                    MissingSlide(run.name, name, fault) for name in discover.distinct_names(recorded) or ["all slides"]
                ]
                continue
            names, faults = [entry.record.id for entry in tiles.entries], dict(tiles.unreadable)
            every = list(dict.fromkeys([*names, *faults, *recorded]))
            labels = dict(zip(every, discover.distinct_names(every)))
            for number, name in enumerate(names):
                key = self.id_of("slide", f"{run.id}/{number}")
                self._slides[key] = run, number
                slides.append((key, run, labels[name]))
            faults |= {name: "the file is no longer there" for name in recorded if name not in {*names, *faults}}
            missing += [
                MissingSlide(run.name, labels[name], discover.without_places(why)) for name, why in faults.items()
            ]
        return slides, missing

    def slide(self, key: str) -> tuple[CatalogFolder, SlideTiles, int]:
        """The owner of the slide with this id, the owner's slides, and its index among them. HTTP 404."""
        if key not in self._slides:
            self.all_slides()
        if key in self._slides:
            run, number = self._slides[key]
            tiles = self.slides(run)
            if tiles is not None:
                return run, tiles, number
        raise HTTPException(404, "no such slide")

    def images(self, run: CatalogFolder, start: int, count: int) -> tuple[int, list[CatalogImage]]:
        """The number of images of a run, and some of them."""
        records = self.source(run).records
        images = []
        for index in range(max(0, start), min(len(records), start + count)):
            key = self.id_of("image", f"{run.id}/{index}")
            images.append(self._images.setdefault(key, CatalogImage(key, run, index, records[index])))
        return len(records), images

    def image(self, key: str) -> CatalogImage | Upload:
        """The image of an id of this session. HTTP 404 if there is none, or the upload was evicted."""
        image = self.uploads.get(key) or self._images.get(key)
        if image is None:
            raise HTTPException(404, "no such image")
        return image

    def sample(self, key: str) -> Sample:
        """An image, a volume or an upload. HTTP 404; raises DamagedFile, DataError."""
        image = self.image(key)
        if isinstance(image, Upload):
            return read_upload(image.data, image.name)
        return self.source(image.run).read(image.index)


def read_upload(data: bytes, name: str) -> Sample:
    """An image, or a volume if the name ends as NIfTI does. Raises DamagedFile, naming it."""
    if not name.lower().endswith(VOLUMES):
        return Sample(decode(data, name), Record(name))
    volume = read_nifti(data, name, most_voxels=UPLOAD_PIXELS)
    return Sample(
        volume.pixels, Record(name), spacing_mm=volume.spacing_mm, affine=volume.affine, modality=volume.modality
    )


def model_names(models: Sequence[str]) -> list[str]:
    """Displayed names of MODELs: registered names as they are, short names of files and folders."""
    paths = [name for name in models if not name.startswith(("random:", "timm:"))]
    short = dict(zip(paths, discover.short_names([Path(name).resolve() for name in paths])))
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


def build_catalog(places: Sequence[Path], models: Sequence[str] = (), tables: Sequence[str] = ()) -> Catalog:
    """The catalog of these runs, hierarchies and heads; equal folder names are distinguished by a parent folder.

    The levels of a hierarchy are runs and models of their own, named HIERARCHY/LEVEL.
    """
    secret = secrets.token_bytes(32)
    paths = list(dict.fromkeys(folder.resolve() for folder in places))
    read, faults = _layered([path for path in paths if discover.is_layered(path)])
    every = list(dict.fromkeys([*paths, *(hierarchy.folder.resolve() for hierarchy in read.values())]))
    names = dict(zip(every, discover.short_names(every)))
    runs: dict[Path, str] = {}
    hierarchies, more = [], []
    for path in paths:
        if path in faults:
            key = opaque(secret, "hierarchy", str(path))
            hierarchies.append(CatalogHierarchy(key, names[path], path, fault=faults[path]))
        elif path in read:
            hierarchy_folder, key = read[path], opaque(secret, "hierarchy", str(path))
            hierarchies.append(
                CatalogHierarchy(
                    key, names[path], hierarchy_folder.folder, hierarchy_folder.tile, hierarchy_folder.head
                )
            )
            for level in hierarchy_folder.levels:
                if discover.is_run(Path(level)):
                    runs.setdefault(Path(level), f"{names[hierarchy_folder.folder.resolve()]}/{Path(level).name}")
                else:
                    more.append(level)
        else:
            runs[path] = names[path]
    labels = discover.numbered(list(runs.values()), list(runs))
    catalog_runs = [CatalogRun(opaque(secret, "run", str(path)), name, path) for path, name in zip(runs, labels)]
    return Catalog(
        catalog_runs, tuple(dict.fromkeys((*more, *models))), secret, tables=tuple(tables), hierarchies=hierarchies
    )


def _layered(paths: Sequence[Path]) -> tuple[dict[Path, discover.HierarchyFolder], dict[Path, str]]:
    """The contents of hierarchies and heads, and the errors of those that cannot be read."""
    read, faults = {}, {}
    for path in paths:
        try:
            read[path] = discover.read_layered(path)
        except SaccadeError as error:
            faults[path] = discover.one_line(error)
    return read, faults
