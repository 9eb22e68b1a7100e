"""Parquet files whose decoded size is compared with the limits: a run of equal values is stored in a few bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from saccade.data.limits import check_claim, check_memory

BATCH_ROWS = 4096


def _row_bytes(kind: pa.DataType) -> int | None:
    """Bytes of a value in memory; None where only decoding tells, as for texts."""
    if pa.types.is_fixed_size_list(kind):
        inner = _row_bytes(kind.value_type)
        return None if inner is None else kind.list_size * inner
    return -(-kind.bit_width // 8) if pa.types.is_primitive(kind) else None


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
        # Sizes are those of the schema: asking pyarrow for the columns of a damaged row group ends the process.
        rows, sizes = file.metadata.num_rows, [_row_bytes(field.type) for field in file.schema_arrow]
        check_claim(rows * sum(size or 1 for size in sizes), stored, name)
        if None not in sizes:
            return file.read()
        batches, total = [], 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            batches.append(batch)
            total += batch.nbytes
            check_memory(total, name)
        return pa.Table.from_batches(batches, schema=file.schema_arrow)
