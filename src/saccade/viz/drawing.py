"""A drawing as a list of shapes, written as SVG or rasterised as PNG from one layout. No torch.

In SVG the ink is ``currentColor`` and colours are CSS variables with fallbacks, so a drawing suits light pages, dark
pages and paper. In PNG the background is transparent and the ink a middle grey, for the same reason.
"""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Ink = Literal["ink", "soft", "line", "mark"]
SVG_INK = {
    "ink": "currentColor",
    "soft": "currentColor",
    "line": "var(--line-1,#24619e)",
    "mark": "var(--line-2,#b4541a)",
}
PNG_INK = {"ink": (122, 122, 122), "soft": (150, 150, 150), "line": (74, 134, 197), "mark": (208, 112, 58)}
SOFT = 0.62
MARGIN = 10.0
FINE = 3  # pixels of a PNG per unit
LETTERS = "DejaVuSans.ttf"  # comes with matplotlib; has Hebrew, Arabic, Greek and Cyrillic letters


@dataclass(frozen=True)
class Rect:
    """A filled rectangle, or with ``edge`` an outline of that width."""

    x: float
    y: float
    wide: float
    tall: float
    ink: Ink = "line"
    opacity: float = 1.0
    edge: float = 0.0


@dataclass(frozen=True)
class TextLine:
    """One line of text; ``y`` is the baseline. ``steep`` rotates it upwards by 60 degrees about its start."""

    x: float
    y: float
    words: str
    size: float = 13.0
    ink: Ink = "ink"
    anchor: Literal["start", "middle", "end"] = "start"
    bold: bool = False
    steep: bool = False


@dataclass(frozen=True)
class Bezier:
    """A cubic Bezier curve through its first and last control point."""

    points: tuple[tuple[float, float], ...]
    width: float
    opacity: float = 1.0
    ink: Ink = "line"


@dataclass(frozen=True)
class Raster:
    """Cells [rows columns] in 0..1, drawn as opacity of the line's colour."""

    x: float
    y: float
    wide: float
    tall: float
    cells: np.ndarray


Shape = Rect | TextLine | Bezier | Raster


@dataclass(frozen=True)
class Drawing:
    """Shapes on a canvas of ``wide`` by ``tall`` units, with a title and a description for screen readers."""

    wide: float
    tall: float
    shapes: tuple[Shape, ...]
    title: str
    description: str

    def svg(self) -> str:
        parts = "".join(_svg(shape) for shape in self.shapes)
        wide, tall = self.wide + 2 * MARGIN, self.tall + 2 * MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-MARGIN:g} {-MARGIN:g} {wide:.0f} {tall:.0f}" '
            f'role="img" width="{wide:.0f}" height="{tall:.0f}" color="#4a4a4a" fill="currentColor" '
            f'font-family="Arial,Helvetica,sans-serif">'
            f"<title>{_plain(self.title)}</title><desc>{_plain(self.description)}</desc>{parts}</svg>\n"
        )

    def png(self) -> bytes:
        size = (round(self.wide * FINE), round(self.tall * FINE))
        picture = Image.new("RGBA", size, (0, 0, 0, 0))
        for shape in self.shapes:
            layer = Image.new("RGBA", picture.size, (0, 0, 0, 0)) if isinstance(shape, Bezier) else None
            _paint(picture if layer is None else layer, shape)
            if layer is not None:
                picture.alpha_composite(layer)
        edge = round(MARGIN * FINE)
        framed = Image.new("RGBA", (size[0] + 2 * edge, size[1] + 2 * edge), (0, 0, 0, 0))
        framed.paste(picture, (edge, edge))
        buffer = io.BytesIO()
        framed.save(buffer, format="PNG")
        return buffer.getvalue()


def width_of(words: str, size: float) -> float:
    """Width of a text in units; Arial in the SVG is slightly narrower."""
    return float(_font(size * FINE).getlength(words)) / FINE


# --- SVG -------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Escaped, and without the control characters that XML forbids even when escaped."""
    printable = "".join(
        c for c in text if unicodedata.category(c) not in ("Cc", "Cs") and ord(c) not in (0xFFFE, 0xFFFF)
    )
    return html.escape(printable)


def _svg(shape: Shape) -> str:
    if isinstance(shape, Rect):
        position = f'x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.wide:.2f}" height="{shape.tall:.2f}"'
        if shape.edge:
            return f'<rect {position} fill="none" stroke="{SVG_INK[shape.ink]}" stroke-width="{shape.edge}"/>'
        return f'<rect {position} fill="{SVG_INK[shape.ink]}" fill-opacity="{shape.opacity:.3f}"/>'
    if isinstance(shape, Bezier):
        (x0, y0), *rest = shape.points
        path = f"M{x0:.1f} {y0:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)
        return (
            f'<path d="{path}" fill="none" stroke="{SVG_INK[shape.ink]}" stroke-width="{shape.width:.2f}" '
            f'stroke-opacity="{shape.opacity:.3f}" stroke-linecap="round"/>'
        )
    if isinstance(shape, Raster):
        return (
            f'<image x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.wide:.2f}" height="{shape.tall:.2f}" '
            f'preserveAspectRatio="none" image-rendering="pixelated" href="{_raster_uri(shape.cells)}"/>'
        )
    soft = f' fill-opacity="{SOFT}"' if shape.ink == "soft" else ""
    bold = ' font-weight="600"' if shape.bold else ""
    turned = f' transform="rotate(-60 {shape.x:.2f} {shape.y:.2f})"' if shape.steep else ""
    return (
        f'<text x="{shape.x:.2f}" y="{shape.y:.2f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}" '
        f'fill="{SVG_INK[shape.ink]}"{soft}{bold}{turned}>{_plain(shape.words)}</text>'
    )


def _raster_uri(cells: np.ndarray) -> str:
    buffer = io.BytesIO()
    _cells(cells).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _cells(cells: np.ndarray) -> Image.Image:
    rgba = np.empty((*cells.shape, 4), dtype=np.uint8)
    rgba[..., :3] = PNG_INK["line"]
    rgba[..., 3] = (np.clip(cells, 0, 1) * 255).round()
    return Image.fromarray(rgba)


# --- PNG -------------------------------------------------------------------------------------------


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{LETTERS}", max(1, round(size)))


def _paint(picture: Image.Image, shape: Shape) -> None:
    draw = ImageDraw.Draw(picture)
    if isinstance(shape, Rect):
        edges = [v * FINE for v in (shape.x, shape.y, shape.x + shape.wide, shape.y + shape.tall)]
        colour = (*PNG_INK[shape.ink], round(255 * shape.opacity))
        if shape.edge:
            draw.rectangle(edges, outline=colour, width=max(1, round(shape.edge * FINE)))
        else:
            draw.rectangle([edges[0], edges[1], edges[2] - 1, edges[3] - 1], fill=colour)
    elif isinstance(shape, Bezier):
        colour = (*PNG_INK[shape.ink], round(255 * shape.opacity))
        points = [(x * FINE, y * FINE) for x, y in _along(shape.points)]
        draw.line(points, fill=colour, width=max(1, round(shape.width * FINE)), joint="curve")
    elif isinstance(shape, Raster):
        size = (max(1, round(shape.wide * FINE)), max(1, round(shape.tall * FINE)))
        fine = _cells(shape.cells).resize(size, Image.Resampling.NEAREST)
        picture.alpha_composite(fine, (round(shape.x * FINE), round(shape.y * FINE)))
    else:
        _write(picture, shape)


def _write(picture: Image.Image, shape: TextLine) -> None:
    font = _font(shape.size * FINE)
    colour = (*PNG_INK[shape.ink], 255)
    heavy = 1 if shape.bold else 0
    if not shape.steep:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        where = (shape.x * FINE, shape.y * FINE)
        ImageDraw.Draw(picture).text(where, shape.words, fill=colour, font=font, anchor=anchor, stroke_width=heavy)
        return
    # Drawn horizontally from the centre of a square, then rotated about that centre.
    half = int(font.getlength(shape.words)) + round(2 * shape.size * FINE)
    square = Image.new("RGBA", (2 * half, 2 * half), (0, 0, 0, 0))
    ImageDraw.Draw(square).text((half, half), shape.words, fill=colour, font=font, anchor="ls", stroke_width=heavy)
    square = square.rotate(60, Image.Resampling.BICUBIC)
    ground = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    ground.paste(square, (round(shape.x * FINE) - half, round(shape.y * FINE) - half))
    picture.alpha_composite(ground)


def _along(points: Sequence[tuple[float, float]], steps: int = 48) -> list[tuple[float, float]]:
    """Points along a cubic curve (Bernstein form)."""
    t = np.linspace(0, 1, steps + 1)[:, None]
    basis = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return [(float(x), float(y)) for x, y in basis @ np.asarray(points, dtype=float)]
