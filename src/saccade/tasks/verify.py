"""``saccade verify``: compare what is kept with the digests that were recorded when it was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from saccade.base.digests import FILE as DIGESTS
from saccade.base.digests import damaged_files, read_digests
from saccade.errors import DamagedFile, DataError, UsageError, first_line
from saccade.features.table import check_table

INTACT, DAMAGED, UNKNOWN = "intact", "damaged", "no digest"
NEEDS_DIGEST = ("*.safetensors", "state.pt")


def verify(path: str | Path) -> dict[str, str]:
    """Compare the files of a run, a model folder or a feature table with their recorded SHA-256.

    Parameters
    ----------
    path : str or Path
        A folder, whose checkpoints, models and feature tables are checked, also in folders inside it; or one feature
        table in Parquet.

    Returns
    -------
    dict
        State by path: ``"intact"``, ``"damaged"`` (changed or missing), or ``"no digest"`` (written by version 0.1 or
        by another program).

    Raises
    ------
    UsageError
        There is nothing to verify.

    Examples
    --------
    >>> import tempfile
    >>> from saccade.base.digests import write_digests
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "model.safetensors").write_bytes(b"weights")
    >>> write_digests(folder)
    >>> [Path(name).name + " " + state for name, state in verify(folder).items()]
    ['digests.json intact', 'model.safetensors intact']
    """
    path = Path(path)
    if not path.exists():
        raise UsageError("nothing to verify", got=path, expected="a run, a model folder or a feature table")
    if path.is_file():
        return {str(path): _state_of_table(path)}
    states = {str(file): state for file, state in _states(path)}
    if not states:
        raise UsageError("nothing to verify", got=path, expected="a folder with checkpoints, a model or feature tables")
    return states


def _states(folder: Path) -> Iterator[tuple[Path, str]]:
    with_digest: set[Path] = set()
    for record in sorted(folder.rglob(DIGESTS)):
        try:
            digests = read_digests(record.parent)
        except DamagedFile:
            digests = None
        if digests is None:
            yield record, DAMAGED
            continue
        yield record, INTACT
        damaged = damaged_files(record.parent, digests)
        for name in sorted(digests.files):
            with_digest.add(record.parent / name)
            yield record.parent / name, DAMAGED if record.parent / name in damaged else INTACT
    for pattern in NEEDS_DIGEST:
        for path in sorted(folder.rglob(pattern)):
            if path not in with_digest:
                yield path, UNKNOWN
    for path in sorted(folder.rglob("*.parquet")):
        yield path, _state_of_table(path)


def _state_of_table(path: Path) -> str:
    try:
        return INTACT if check_table(path) else UNKNOWN
    except DataError:
        return DAMAGED
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise UsageError(f"{path} is not a feature table", got=first_line(error)) from error
