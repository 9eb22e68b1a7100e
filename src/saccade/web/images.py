"""Images of runs and uploads, with thumbnails. Uploads are held in memory."""

from __future__ import annotations

import io
import math
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
import tifffile
from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from PIL import Image

from saccade.data.formats import PNG_MAGIC, is_tiff
from saccade.data.images.tiff import main_series
from saccade.errors import DataError
from saccade.web.catalog import UPLOAD_PIXELS, Catalog, CatalogImage, Upload, read_upload
from saccade.web.discover import encodable, named

BYTES_A_PIXEL = 4  # of an upload, all channels together, at UPLOAD_PIXELS
STRIPE_PX, STRIPE_GREYS = 12, (96, 160)


def router(catalog: Catalog) -> APIRouter:
    api = APIRouter()

    @api.get("/images")
    def listed(
        run: str, start: Annotated[int, Query(ge=0)] = 0, count: Annotated[int, Query(ge=1, le=200)] = 48
    ) -> dict[str, Any]:
        total, images = catalog.images(catalog.run(run), start, count)
        return {"total": total, "images": [describe_image(image.id, image) for image in images]}

    @api.get("/images/{key}")
    def one(key: str) -> dict[str, Any]:
        """The image of an id of this session; HTTP 404 if the server no longer has it."""
        return describe_image(key, catalog.image(key))

    @api.get("/images/{key}/small")
    def small(key: str, side: Annotated[int, Query(ge=16, le=1024)] = 96) -> Response:
        pixels = catalog.sample(key).pixels
        return png(to_display(pixels[:, pixels.shape[1] // 2] if pixels.ndim == 4 else pixels), side)

    @api.post("/uploads")
    async def upload(request: Request, x_name: Annotated[str, Header()] = "upload") -> dict[str, Any]:
        """Decoded in a worker thread, so that the server answers other requests meanwhile."""
        return await run_in_threadpool(_take, catalog, unquote(x_name), await request.body())

    return api


def _take(catalog: Catalog, name: str, data: bytes) -> dict[str, Any]:
    check_pixels(data, name)
    pixels = read_upload(data, name).pixels
    return {"id": catalog.uploads.add(name, data), "name": name, "upload": True, "size_px": list(pixels.shape[1:])}


def describe_image(key: str, image: CatalogImage | Upload) -> dict[str, Any]:
    """An image as the page lists it."""
    if isinstance(image, Upload):
        return {"id": key, "name": image.name, "label": None, "split": None, "upload": True}
    entry = {"name": named(image.record.id), "label": image.record.label, "split": image.record.split}
    return {"id": key} | encodable(entry) | {"run": image.run.id, "index": image.index}


def check_pixels(data: bytes, name: str) -> None:
    """Raise DataError, before decoding, for an image whose header exceeds the limits of an upload."""
    try:
        pixels, decoded = _claimed(data, name)
    except Exception:  # unknown formats are left to the decoder, which has a limit of its own
        return
    if pixels > UPLOAD_PIXELS:
        raise DataError(
            f"{name} has too many pixels for the page",
            got=f"{pixels:,}",
            expected=f"at most {UPLOAD_PIXELS:,}",
            hint="crop it, or use saccade attend",
        )
    if decoded > BYTES_A_PIXEL * UPLOAD_PIXELS:
        raise DataError(
            f"{name} has too many channels of so many pixels for the page",
            got=f"{decoded / 2**20:,.0f} MiB of numbers",
            expected=f"at most {BYTES_A_PIXEL * UPLOAD_PIXELS / 2**20:,.0f} MiB",
            hint="crop it, or use saccade attend",
        )


def _claimed(data: bytes, name: str) -> tuple[int, int]:
    """Pixels of one channel, and bytes of all, according to the header."""
    if is_tiff(data):  # Pillow does not report all channels of a TIFF
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = main_series(file, name)
            sizes = dict(zip(series.axes, series.shape))
            return sizes["Y"] * sizes["X"], math.prod(series.shape) * series.dtype.itemsize
    with Image.open(io.BytesIO(data)) as image:
        pixels = image.width * image.height
        deep = 2 if data[:8] == PNG_MAGIC and data[24] == 16 else 1
        return pixels, pixels * len(image.getbands()) * deep


def to_display(pixels: np.ndarray) -> np.ndarray:
    """[C Y X] of any type to uint8 [3 Y X]: 8 bits unchanged, others rescaled by minimum and maximum."""
    if pixels.shape[0] != 3:
        pixels = np.repeat(pixels[:1], 3, axis=0)
    if pixels.dtype == np.uint8:
        return pixels
    values = np.nan_to_num(pixels.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)


def striped(pixels: np.ndarray, unread: np.ndarray) -> np.ndarray:
    """uint8 [3 Y X] with grey stripes where ``unread`` [Y X], so that damage is not taken for tissue."""
    if not unread.any():
        return pixels
    y, x = np.indices(unread.shape)
    stripes = np.where((x + y) % STRIPE_PX < STRIPE_PX // 2, *STRIPE_GREYS).astype(np.uint8)
    return np.where(unread, stripes, pixels)


def png(pixels: np.ndarray, longest_px: int | None = None, *, cacheable: bool = True) -> Response:
    """uint8 [3 Y X] as PNG, at most ``longest_px`` long. ``cacheable``: the browser may keep it."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if longest_px is not None:
        image.thumbnail((longest_px, longest_px))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    # An id means one picture for the whole session, so the browser may cache it.
    headers = {"cache-control": "private, max-age=3600"} if cacheable else None
    return Response(file.getvalue(), media_type="image/png", headers=headers)
