"""What all sources share: names to records, manifests, and views over a source."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import pyarrow
import pyarrow.parquet

from saccade.contracts import Record, Sample, Source
from saccade.data.decode import IMAGE_SUFFIXES
from saccade.errors import DataError, unknown

MANIFESTS = ("manifest.csv", "manifest.parquet", "labels.csv")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def is_image_name(name: str) -> bool:
    """Whether a name looks like an image; hidden files and macOS shadows do not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def records_from_names(names: Iterable[str]) -> list[Record]:
    """Records by the folders the files lie in: ``[SPLIT/][CLASS/]file``. Names are relative, with ``/``.

    Folders common to all files say nothing and are left out. Deeper folders than CLASS are part of the name.
    """
    names = sorted(names)
    parents = [PurePosixPath(name).parts[:-1] for name in names]
    skip = 0
    while parents and all(len(p) > skip and p[skip] == parents[0][skip] for p in parents):
        if parents[0][skip].lower() in SPLITS:
            break
        skip += 1
    records = []
    for name, parent in zip(names, parents):
        rest = list(parent[skip:])
        split = SPLITS.get(rest[0].lower()) if rest else None
        if split is not None:
            rest = rest[1:]
        records.append(Record(id=name, label=rest[0] if rest else None, split=split))
    if len({record.label for record in records}) == 1:  # one folder in each split is not a class
        records = [dataclasses.replace(record, label=None) for record in records]
    return records


# --- manifests ----------------------------------------------------------------------------------


def read_rows(data: bytes, name: str) -> list[dict[str, str]]:
    """Rows of a CSV or Parquet table, column names in lower case, everything as text."""
    try:
        if name.lower().endswith(".parquet"):
            table = pyarrow.parquet.read_table(io.BytesIO(data))
            rows = [{k.lower(): "" if v is None else str(v) for k, v in row.items()} for row in table.to_pylist()]
        else:
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
            rows = [{(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if k} for row in reader]
    except (UnicodeDecodeError, csv.Error, pyarrow.ArrowException, AttributeError) as error:
        raise DataError(f"{name}: not a readable table", got=str(error).splitlines()[0]) from error
    if not rows:
        raise DataError(f"{name}: the table has no rows")
    return rows


def path_column(rows: Sequence[Mapping[str, str]]) -> str | None:
    return next((column for column in ("path", "file") if column in rows[0]), None)


def records_from_rows(
    rows: Sequence[Mapping[str, str]],
    names: Iterable[str],
    *,
    table: str,
    label: str | None,
    group: str | None,
) -> list[Record]:
    """Records of a manifest whose rows name files among ``names``.

    A row's path is relative to the manifest; a file in ``images/`` or with a unique name is found as well.
    Raises DataError for rows without a file, rows that name a file twice, and unknown columns.
    """
    key = path_column(rows)
    if key is None:
        raise DataError(
            f"{table}: no column says where the images are", got=", ".join(rows[0]), expected="path or file"
        )
    columns = set(rows[0])
    for wanted in (label, group):
        if wanted is not None and wanted.lower() not in columns:
            raise unknown(f"column of {table}", wanted, columns)
    label_key = label.lower() if label else next((c for c in ("label", "class") if c in columns), None)
    group_key = group.lower() if group else ("group" if "group" in columns else None)
    known = set(names)
    by_name: dict[str, list[str]] = {}
    for name in known:
        by_name.setdefault(PurePosixPath(name).name, []).append(name)
    records, missing = [], []
    for row in rows:
        found = _find(row[key], known, by_name)
        if found is None:
            missing.append(row[key])
            continue
        special = {key, label_key, group_key, "split"}
        split = row.get("split") or None
        records.append(
            Record(
                id=found,
                label=(row[label_key] or None) if label_key else None,
                group=(row[group_key] or None) if group_key else None,
                split=SPLITS.get(split.lower(), split) if split else None,
                extra={k: v for k, v in row.items() if k not in special},
            )
        )
    _check_rows(records, missing, len(rows), table)
    return sorted(records, key=lambda record: record.id)


def _find(path: str, known: set[str], by_name: Mapping[str, list[str]]) -> str | None:
    path = path.replace("\\", "/").removeprefix("./")
    for candidate in (path, f"images/{path}"):
        if candidate in known:
            return candidate
    same = by_name.get(PurePosixPath(path).name, [])
    return same[0] if len(same) == 1 else None


def _check_rows(records: Sequence[Record], missing: Sequence[str], rows: int, table: str) -> None:
    if missing:
        raise DataError(
            f"{table}: {len(missing)} of {rows} rows name a file that is not there",
            got=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            expected="paths relative to the table",
        )
    twice = [name for name, count in Counter(r.id for r in records).items() if count > 1]
    if twice:
        raise DataError(
            f"{table}: {len(twice)} files are named in more than one row",
            got=", ".join(twice[:5]),
            expected="one row an image",
        )


def choose_records(
    names: Sequence[str],
    manifest: tuple[str, bytes] | None,
    *,
    explicit: bool,
    source: str,
    label: str | None,
    group: str | None,
) -> list[Record]:
    """Records from a manifest (name, content) where there is a fitting one, else from the folders.

    explicit  the user named the manifest: whatever does not fit is then an error instead of being left aside
    """
    if not names:
        raise DataError(
            f"{source}: no images found",
            expected="files ending in " + ", ".join(IMAGE_SUFFIXES),
            hint="saccade reads folders, archives, .npz and manifests; see docs/guides/data.md",
        )
    if manifest is not None:
        rows = read_rows(manifest[1], manifest[0])
        key = path_column(rows)
        one_each = key is not None and len({row[key] for row in rows}) == len(rows)
        if explicit or label or group or one_each:
            return records_from_rows(rows, names, table=manifest[0], label=label, group=group)
    if label or group:
        raise DataError(
            f"{source} has no table of columns",
            got=f"--label or --group {label or group}",
            hint="add a labels.csv with the columns path,label,split,group, or name one with --labels",
        )
    return records_from_names(names)


# --- views over a source --------------------------------------------------------------------------


class Selection:
    """Some images of another source, in the order given."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, [int(i) for i in indices]
        self.name = source.name
        self.records: list[Record] = [source.records[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        return self.source.read(self.indices[index])

    def content_hash(self, index: int) -> str:
        return self.source.content_hash(self.indices[index])


def select(source: Source, indices: Sequence[int]) -> Selection:
    """The images at ``indices``."""
    return Selection(source, indices)
