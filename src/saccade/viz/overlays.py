"""Overlays, attention panels and nearest neighbours as pictures. Pillow and numpy, no torch.

Colours are the inferno map of Smith and van der Walt (CC0), perceptually uniform and readable in grey. Panels have a
transparent background and grey text, so that they suit light and dark pages.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.errors import UsageError
from saccade.viz.patch_maps import AttentionMap, Box, ColourScale, colour_scales, query_text

INFERNO = (
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
)
INK = (122, 122, 122, 255)
GAP_PX, CELL_PX, LINE_PX, TEXT_PX = 12, 224, 19, 15


# --- colours -------------------------------------------------------------------------------------


def colours(values: np.ndarray) -> np.ndarray:
    """Values in 0..1 of any shape to uint8 RGB [... 3]; NaN becomes the lowest colour."""
    table = np.array([list(bytes.fromhex(word)) for word in INFERNO.split()], dtype=np.float64)
    at = np.clip(np.nan_to_num(values), 0, 1) * (len(table) - 1)
    channels = [np.interp(at, np.arange(len(table)), table[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [3 Y X] or [1 Y X] to RGB uint8 [Y X 3].

    Raises
    ------
    UsageError
        Another type or number of channels.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UsageError(
            "unsupported picture",
            got=f"{image.dtype} {list(image.shape)}",
            expected="uint8 [3 Y X] or [1 Y X]",
        )
    return np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))


def opacity(strength: np.ndarray) -> np.ndarray:
    """Opacity of a map of 0..1; the picture stays visible everywhere."""
    return 0.35 + 0.45 * strength


# --- one overlay ---------------------------------------------------------------------------------


def blend(
    image: np.ndarray, values: np.ndarray, scale: ColourScale, *, longest_px: int, box: Box | None = None
) -> Image.Image:
    """The map [Y' X'] over the image [3 Y X], enlarged so that the longer side is ``longest_px``.

    The image is converted to grey so that its colours are not read as attention. ``box`` is the query patch in pixels
    of the image, drawn as an outline.
    """
    size = _fit(image.shape[1:], longest_px)
    picture = _enlarge(image, size).convert("L").convert("RGB")
    fine = Image.fromarray(scale.strength(values)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(fine), 0, 1)  # bicubic overshoots a little
    alpha = opacity(strength)[..., None]
    mixed = np.asarray(picture) * (1 - alpha) + colours(strength) * alpha
    result = Image.fromarray(mixed.round().astype(np.uint8))
    if box is not None:
        _mark(result, box, image.shape[1:])
    return result


def overlay_png(image: np.ndarray, amap: AttentionMap, path: Path | None = None, *, longest_px: int = 512) -> bytes:
    """PNG of the mean map over the image (uint8 [3 Y X], any size); also written to ``path`` if given."""
    box = _scaled_box(amap, image.shape[1:])
    data = png_of(blend(image, amap.mean, colour_scales([amap.mean_only()])[0], longest_px=longest_px, box=box))
    if path is not None:
        path.write_bytes(data)
    return data


def overlay_svg(
    image: np.ndarray,
    amap: AttentionMap,
    *,
    title: str | None = None,
    description: str | None = None,
    scale: ColourScale | None = None,
) -> str:
    """Vector form for papers: the image once, and one translucent rectangle per patch above it.

    Parameters
    ----------
    image : ndarray
        uint8 [3 Y X], the whole input at any size.
    amap : AttentionMap
        Its mean is drawn.
    title, description : str, optional
        Texts of the SVG; None describes the map.
    scale : ColourScale, optional
        None is the scale of this map alone.
    """
    y_px, x_px = image.shape[1:]
    values = amap.mean
    scale = scale or colour_scales([amap.mean_only()])[0]
    strength = scale.strength(values)
    rows, columns = strength.shape
    high, wide = y_px / rows, x_px / columns
    hexes = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours(strength).reshape(-1, 3)]
    covers = opacity(strength).ravel()
    patches = [
        f'<rect x="{(i % columns) * wide:.3f}" y="{(i // columns) * high:.3f}" width="{wide:.3f}" '
        f'height="{high:.3f}" fill="{hexes[i]}" fill-opacity="{covers[i]:.3f}"/>'
        for i in range(rows * columns)
    ]
    title = title or f"{amap.kind.capitalize()} over {rows} × {columns} patches"
    description = description or f"{query_text(amap)}; {amap.largest(values)}."
    grey = Image.fromarray(to_rgb(image)).convert("L")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x_px} {y_px}" role="img" '
        f'aria-labelledby="t d" shape-rendering="crispEdges">'
        f'<title id="t">{html.escape(title)}</title><desc id="d">{html.escape(description)}</desc>'
        f'<image width="{x_px}" height="{y_px}" href="{data_uri(png_of(grey))}"/>'
        f"<g>{''.join(patches)}</g>{_svg_mark(_scaled_box(amap, image.shape[1:]), y_px, x_px)}</svg>\n"
    )


def _svg_mark(box: Box | None, y_px: int, x_px: int) -> str:
    if box is None:
        return ""
    top, left, tall, broad = box
    position = f'x="{left}" y="{top}" width="{broad}" height="{tall}" fill="none"'
    line = max(y_px, x_px) / 250
    return (
        f'<rect {position} stroke="#000" stroke-width="{2 * line:.3f}"/>'
        f'<rect {position} stroke="#fff" stroke-width="{line:.3f}"/>'
    )


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


# --- panels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PanelCell:
    """One picture of a sheet with up to two lines below it; ``rule`` draws a bar under the picture."""

    picture: Image.Image
    lines: tuple[str, ...] = ()
    rule: bool = False


def attention_panel(image: np.ndarray, amap: AttentionMap, scale: ColourScale | None = None) -> bytes:
    """PNG: the image, the mean map, then every head, each with its largest value below.

    image : uint8 [3 Y X], any size. All maps have one scale: of this map alone unless given.
    """
    scale = scale or colour_scales([amap])[0]
    box = _scaled_box(amap, image.shape[1:])
    original = _enlarge(image, _fit(image.shape[1:], CELL_PX))
    if box is not None:
        _mark(original, box, image.shape[1:])
    cells = [PanelCell(original, ("image", query_text(amap)))]
    heads = len(amap.values)
    name = f"mean of {heads} heads" if heads > 1 else amap.kind
    mean = amap.mean
    picture = blend(image, mean, scale, longest_px=CELL_PX, box=box)
    cells.append(PanelCell(picture, (name, amap.largest(mean))))
    for head in range(heads if heads > 1 else 0):
        values = amap.values[head]
        picture = blend(image, values, scale, longest_px=CELL_PX, box=box)
        cells.append(PanelCell(picture, (f"head {head}", amap.largest(values))))
    return png_of(with_colour_bar(_sheet(cells, columns=_columns(len(cells))), scale))


@dataclass(frozen=True)
class Neighbour:
    """One picture of a neighbours panel: uint8 [3 Y X], its class and its similarity to the query."""

    image: np.ndarray
    label: str | None = None
    score: float | None = None


def neighbours_panel(rows: Sequence[tuple[Neighbour, Sequence[Neighbour]]]) -> bytes:
    """PNG: one row per query, with its nearest images to the right, most similar first.

    A neighbour of the query's class has a bar under it; another class is written "other: ...".
    """
    if not rows:
        raise UsageError("a neighbours panel needs at least one query", got="none")
    cells: list[PanelCell] = []
    columns = 1 + max(len(neighbours) for _, neighbours in rows)
    blank = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    for query, neighbours in rows:
        cells.append(PanelCell(_square(query.image), ("query", query.label or "")))
        for item in neighbours:
            same = item.label is not None and item.label == query.label
            score = "" if item.score is None else f"{item.score:.3f}"
            differs = item.label is not None and query.label is not None and not same
            label = f"other: {item.label}" if differs else item.label or ""
            cells.append(PanelCell(_square(item.image), (score, label), rule=same))
        cells += [PanelCell(blank)] * (columns - 1 - len(neighbours))
    return png_of(_sheet(cells, columns=columns, first_apart=True))


def hits_panel(query: np.ndarray, hits: Sequence[Neighbour], *, columns: int = 6) -> bytes:
    """PNG: an image (uint8 [3 Y X]) and below it the search results, nearest first.

    A result of 1 x 1 pixels stands for an image that is missing.
    """
    blank = PanelCell(Image.new("RGBA", (1, 1), (0, 0, 0, 0)))
    cells = [PanelCell(_square(query), ("query",)), *[blank] * (min(columns, len(hits) or 1) - 1)]
    for rank, item in enumerate(hits, start=1):
        missing = item.image.shape[1:] == (1, 1)
        text = f"{rank}: {item.score:.3f}" + (", missing" if missing else "")
        cells.append(PanelCell(blank.picture if missing else _square(item.image), (text, item.label or "")))
    return png_of(_sheet(cells, columns=min(columns, len(hits) or 1)))


def with_colour_bar(sheet: Image.Image, scale: ColourScale) -> Image.Image:
    """The sheet with the colours of its maps below it, and a tick at the even share."""
    wide, tall = min(2 * CELL_PX, sheet.width), 12
    result = Image.new("RGBA", (sheet.width, sheet.height + tall + LINE_PX + GAP_PX), (0, 0, 0, 0))
    result.paste(sheet, (0, 0))
    top = sheet.height + GAP_PX // 2
    ramp = np.broadcast_to(colours(np.linspace(0, 1, wide)), (tall, wide, 3))
    result.paste(Image.fromarray(np.ascontiguousarray(ramp)), (0, top))
    draw, font = ImageDraw.Draw(result), ImageFont.load_default(TEXT_PX)
    below, high = top + tall + 2, scale.label(scale.high)
    draw.text((0, below), scale.label(scale.low), fill=INK, font=font)
    draw.text((wide - font.getlength(high), below), high, fill=INK, font=font)
    if scale.even is not None and scale.low < scale.even < scale.high:
        x = round((scale.even - scale.low) / (scale.high - scale.low) * wide)
        text = "1 x even share"
        draw.rectangle((x - 1, top - 3, x, top + tall + 2), fill=INK, outline=(255, 255, 255))
        left = min(max(x - font.getlength(text) / 2, 36), wide - font.getlength(high) - font.getlength(text) - 8)
        draw.text((left, below), text, fill=INK, font=font)
    return result


def _columns(count: int) -> int:
    return count if count <= 5 else 4 if count <= 8 else 5


def _scaled_box(amap: AttentionMap, size: tuple[int, ...]) -> Box | None:
    """The query box, given in pixels of the network's input, in pixels of the picture."""
    if amap.query_box is None:
        return None
    down, across = size[0] / amap.size_px[0], size[1] / amap.size_px[1]
    top, left, tall, broad = amap.query_box
    return round(top * down), round(left * across), max(1, round(tall * down)), max(1, round(broad * across))


def _sheet(cells: Sequence[PanelCell], *, columns: int, first_apart: bool = False) -> Image.Image:
    """Cells on a regular grid with text below; ``first_apart`` separates the first column."""
    font = ImageFont.load_default(TEXT_PX)
    wide, tall = (max(cell.picture.size[i] for cell in cells) for i in (0, 1))
    lines = max(len(cell.lines) for cell in cells)
    pitch_x, pitch_y = wide + GAP_PX, tall + lines * LINE_PX + 2 * GAP_PX
    apart = 2 * GAP_PX if first_apart else 0
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGBA", (columns * pitch_x - GAP_PX + apart, rows * pitch_y - GAP_PX), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, cell in enumerate(cells):
        x = (i % columns) * pitch_x + (apart if i % columns else 0)
        y = (i // columns) * pitch_y
        sheet.paste(cell.picture, (x, y))
        if cell.rule:
            draw.rectangle((x, y + tall + 3, x + wide - 1, y + tall + 5), fill=INK)
        for n, line in enumerate(cell.lines):
            draw.text((x, y + tall + 8 + n * LINE_PX), _shorten(line, font, wide), fill=INK, font=font)
    return sheet


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip() + "…"


def _fit(size: tuple[int, ...], longest_px: int) -> tuple[int, int]:
    scale = longest_px / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _enlarge(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(to_rgb(image)).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def _square(image: np.ndarray) -> Image.Image:
    """The picture inside a square cell of half the usual size; the rest is transparent."""
    side = CELL_PX // 2
    small = _enlarge(image, _fit(image.shape[1:], side))
    cell = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    cell.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return cell


def _mark(picture: Image.Image, box: Box, size: tuple[int, ...]) -> None:
    """A white outline with a dark rim, visible on any background."""
    scale = picture.width / size[1]
    top, left, tall, broad = (v * scale for v in box)
    draw = ImageDraw.Draw(picture)
    edge = (left - 1, top - 1, left + broad, top + tall)
    draw.rectangle((edge[0] - 1, edge[1] - 1, edge[2] + 1, edge[3] + 1), outline=(0, 0, 0), width=1)
    draw.rectangle(edge, outline=(255, 255, 255), width=2)


def png_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
