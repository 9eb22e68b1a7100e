"""Parquet files whose decoded size is compared with the limits: a run of equal values is stored in a few bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from saccade.data.limits import check_claim, check_memory

WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value by its physical type; of others the length is only known once it is decoded."""
OFFSET_BYTES = 8
BATCH_ROWS = 4096


def read_bounded(source: Path | pa.NativeFile, stored: int, name: str) -> pa.Table:
    """Read a Parquet file.

    Parameters
    ----------
    source : Path or pyarrow.NativeFile
    stored : int
        Length of the file in bytes.
    name : str
        Name of the file for messages.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    DamagedFile
        Its header, or what was decoded of it, passes the limits of ``saccade.data.limits``.
    """
    with pq.ParquetFile(source) as file:
        metadata, claimed, all_fixed = file.metadata, 0, True
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                width = WIDTHS.get(column.physical_type)
                all_fixed &= width is not None
                claimed += column.num_values * (width or OFFSET_BYTES)
        check_claim(max(claimed, metadata.num_rows), stored, name)
        if all_fixed:
            return file.read()
        batches, total = [], 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            batches.append(batch)
            total += batch.nbytes
            check_memory(total, name)
        return pa.Table.from_batches(batches, schema=file.schema_arrow)
