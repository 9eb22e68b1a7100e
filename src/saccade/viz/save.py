"""Write a result in the format that the suffix of the path names, and tables as CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from saccade.errors import unknown


def save_by_suffix(path: str | Path, writers: Mapping[str, Callable[[Path], object]], what: str) -> Path:
    """Write ``path`` with the writer of its suffix.

    Parameters
    ----------
    path : str or Path
        The file to write; upper and lower case of the suffix are the same.
    writers : mapping
        Suffix (".png", ".nii.gz") to a function that writes a path.
    what : str
        Kind of file for the message, such as "picture format".

    Returns
    -------
    Path
        The path that was written.

    Raises
    ------
    UsageError
        The suffix has no writer; the message names those that have one.
    """
    path = Path(path)
    write = next((writers[suffix] for suffix in writers if path.name.lower().endswith(suffix)), None)
    if write is None:
        raise unknown(what, path.suffix, writers)
    write(path)
    return path


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""A table as CSV text with "\n" at the end of each line.

    Examples
    --------
    >>> csv_text(["head", "weight"], [[0, 0.5]])
    'head,weight\n0,0.5\n'
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def map_csv(values: np.ndarray) -> str:
    """Maps [H Y' X'] or [H T' Y' X'] as CSV: one line per head and patch, weights with eight digits.

    Examples
    --------
    >>> print(map_csv(np.ones((1, 1, 2))).strip())
    head,row,column,weight
    0,0,0,1
    0,0,1,1
    """
    axes = ["slice", "row", "column"][4 - values.ndim :]
    rows = ([*index, f"{weight:.8g}"] for index, weight in np.ndenumerate(values))
    return csv_text(["head", *axes, "weight"], rows)
