// The same drawing commands on a canvas and in an SVG, so that exports equal the page.

import { escaped } from "./files.js";

// The page's colours as they are now, light or dark.
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return {
    page: of("--page"), ink: of("--ink"), soft: of("--soft"), hair: of("--hair"), wash: of("--wash"),
    line: of("--accent"), mark: of("--series-2"),
  };
}

const FONT = '-apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif';

export class CanvasPainter {
  // The canvas gets as many pixels as the screen has; `wide` and `tall` are in units of the page.
  constructor(canvas, wide, tall, ratio = globalThis.devicePixelRatio || 1) {
    canvas.width = Math.max(1, Math.round(wide * ratio));
    canvas.height = Math.max(1, Math.round(tall * ratio));
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${tall}px`;
    this.to = canvas.getContext("2d");
    this.to.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.to.clearRect(0, 0, wide, tall);
  }

  rect(x, y, wide, tall, colour, alpha = 1, edge = 0) {
    this.to.globalAlpha = alpha;
    if (edge) {
      this.to.strokeStyle = colour;
      this.to.lineWidth = edge;
      this.to.strokeRect(x, y, wide, tall);
    } else {
      this.to.fillStyle = colour;
      this.to.fillRect(x, y, wide, tall);
    }
    this.to.globalAlpha = 1;
  }

  text(x, y, words, colour, { size = 14, align = "left", bold = false, turn = 0, direction = "ltr" } = {}) {
    this.to.direction = direction;
    this.to.font = `${bold ? "600 " : ""}${size}px ${FONT}`;
    this.to.fillStyle = colour;
    this.to.textAlign = align;
    if (!turn) { this.to.fillText(words, x, y); return; }
    this.to.save();
    this.to.translate(x, y);
    this.to.rotate(turn);
    this.to.fillText(words, 0, 0);
    this.to.restore();
  }

  curve(points, colour, width, alpha = 1) {
    const [a, b, c, d] = points;
    this.to.globalAlpha = alpha;
    this.to.strokeStyle = colour;
    this.to.lineWidth = width;
    this.to.lineCap = "round";
    this.to.beginPath();
    this.to.moveTo(...a);
    this.to.bezierCurveTo(...b, ...c, ...d);
    this.to.stroke();
    this.to.globalAlpha = 1;
  }

  // Cells [rows, columns] that were painted onto a small canvas, enlarged without blur.
  cells(x, y, wide, tall, small) {
    this.to.imageSmoothingEnabled = false;
    this.to.drawImage(small, x, y, wide, tall);
  }
}

// Widths are measured on a hidden canvas.
const measuring = { to: null, known: new Map() };

export function widthOf(words, size) {
  const key = `${size}\0${words}`;
  if (!measuring.known.has(key)) {
    measuring.to ??= document.createElement("canvas").getContext("2d");
    measuring.to.font = `${size}px ${FONT}`;
    if (measuring.known.size > 5000) measuring.known.clear();
    measuring.known.set(key, measuring.to.measureText(words).width);
  }
  return measuring.known.get(key);
}

const at = (value) => Math.round(value * 100) / 100;

export class SvgPainter {
  constructor(wide, tall, ground, title) {
    this.wide = wide;
    this.tall = tall;
    this.title = title;
    this.parts = [`<rect width="${at(wide)}" height="${at(tall)}" fill="${escaped(ground)}"/>`];
  }

  rect(x, y, wide, tall, colour, alpha = 1, edge = 0) {
    const place = `x="${at(x)}" y="${at(y)}" width="${at(wide)}" height="${at(tall)}"`;
    const paint = edge ? `fill="none" stroke="${escaped(colour)}" stroke-width="${edge}" stroke-opacity="${at(alpha)}"`
      : `fill="${escaped(colour)}" fill-opacity="${at(alpha)}"`;
    this.parts.push(`<rect ${place} ${paint}/>`);
  }

  text(x, y, words, colour, { size = 14, align = "left", bold = false, turn = 0, direction = "ltr" } = {}) {
    const first = direction === "rtl" ? "right" : "left"; // a line starts where its reading does
    const anchor = align === "center" ? "middle" : align === first ? "start" : "end";
    const turned = turn ? ` transform="rotate(${at(turn * 180 / Math.PI)} ${at(x)} ${at(y)})"` : "";
    this.parts.push(`<text x="${at(x)}" y="${at(y)}" font-size="${size}" text-anchor="${anchor}" fill="${escaped(colour)}"` +
      `${bold ? ' font-weight="600"' : ""}${direction === "rtl" ? ' direction="rtl"' : ""}${turned}>${escaped(words)}</text>`);
  }

  curve(points, colour, width, alpha = 1) {
    const [a, b, c, d] = points.map(([x, y]) => `${at(x)} ${at(y)}`);
    this.parts.push(`<path d="M${a}C${b} ${c} ${d}" fill="none" stroke="${escaped(colour)}" stroke-width="${at(width)}"` +
      ` stroke-opacity="${at(alpha)}" stroke-linecap="round"/>`);
  }

  cells(x, y, wide, tall, small) {
    this.parts.push(`<image x="${at(x)}" y="${at(y)}" width="${at(wide)}" height="${at(tall)}" preserveAspectRatio="none"` +
      ` image-rendering="pixelated" href="${small.toDataURL("image/png")}"/>`);
  }

  toString() {
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${at(this.wide)} ${at(this.tall)}" width="${at(this.wide)}"` +
      ` height="${at(this.tall)}" role="img" font-family="${escaped(FONT)}"><title>${escaped(this.title)}</title>` +
      `${this.parts.join("")}</svg>\n`;
  }
}

// #rrggbb to three numbers, for pixels.
export function rgb(colour) {
  const digits = colour.replace("#", "");
  const whole = digits.length === 3 ? [...digits].map((d) => d + d).join("") : digits;
  return [0, 2, 4].map((i) => parseInt(whole.slice(i, i + 2), 16));
}
