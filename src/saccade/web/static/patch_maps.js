// Numbers over a grid of patches as colours, masks and words. The colours are those of saccade's figures: inferno (Smith
// and van der Walt, CC0), readable in grey.

import { el } from "./dom.js";

const INFERNO = ("000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 " +
  "f9cb35 f2ea69 fcffa4").split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

// 256 colours, made once.
const TABLE = Uint8ClampedArray.from({ length: 768 }, (_, i) => {
  const at = (Math.floor(i / 3) / 255) * (INFERNO.length - 1);
  const low = Math.min(Math.floor(at), INFERNO.length - 2);
  return INFERNO[low][i % 3] + (at - low) * (INFERNO[low + 1][i % 3] - INFERNO[low][i % 3]);
});

export function colour(strength) {
  const at = 3 * Math.round(255 * Math.min(1, Math.max(0, strength)));
  return [TABLE[at], TABLE[at + 1], TABLE[at + 2]];
}

// Opacity of a map of 0..1: the image stays visible everywhere.
export function cover(strength) {
  return 0.35 + 0.45 * strength;
}

export function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return { low, high };
}

// The scale of a map. Attention goes from 0 to its largest weight, but at least to twice the even share, so that an almost
// uniform map looks uniform; cosine similarity goes to 1. `stretch` takes the range of the map itself.
export function scaleLimits(kind, own, even, stretch) {
  return sharedLimits(kind, [{ own, even }], stretch)[0];
}

// One scale for several maps of one kind, in multiples of the even share of each. parts: [{own, even}]
export function sharedLimits(kind, parts, stretch) {
  const low = Math.min(...parts.map(({ own }) => own.low)), high = Math.max(...parts.map(({ own }) => own.high));
  if (stretch) return parts.map(() => ({ low, high }));
  if (kind === "similarity") return parts.map(() => ({ low: Math.min(0, low), high: 1 }));
  const most = Math.max(2, ...parts.map(({ own, even }) => own.high / even));
  return parts.map(({ even }) => ({ low: 0, high: most * even }));
}

// The ends of a scale in words: cosines, or multiples of the even share.
export function scaleEnds(kind, { low, high }, even) {
  return [low, high].map((value) => (kind === "similarity" ? compact(value) : `${compact(value / even)} ×`));
}

export function evenText(even) { return `1 × is the even share, ${percent(even)}`; }

export function almostUniform(kind, own, even) { return kind !== "similarity" && own.high < 2 * even; }

// Position of the uniform weight on a scale, in 0..1; null outside.
export function evenAt(kind, { low, high }, even) {
  const at = (even - low) / (high - low);
  return kind === "similarity" || !(at >= 0 && at <= 1) ? null : at;
}

// The colour bar below a map, with a tick at the even share.
export function scaleBar(kind, limits, even) {
  const [low, high] = scaleEnds(kind, limits, even), at = evenAt(kind, limits, even);
  return [el("span", null, low),
    el("span", { class: "ramp" }, at === null ? null : el("span", { class: "even-mark", style: { left: `${100 * at}%` } })),
    el("span", null, high), kind === "similarity" ? null : el("span", { class: "even" }, evenText(even))];
}

// The smallest set of patches that holds the share `keep` of the mass (figures 3 and 4 of the DINO paper).
export function mask(values, keep) {
  const inside = new Uint8Array(values.length);
  let total = 0;
  for (const value of values) total += Math.max(0, value);
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
  let held = 0;
  for (const i of order) {
    if (held >= keep * total * (1 - 1e-9)) break;
    inside[i] = 1;
    held += Math.max(0, values[i]);
  }
  return inside;
}

// Colours and opacities of one map, one per patch. `shown` null shows all.
export function mapPixels(values, { low, high }, shown = null) {
  const data = new Uint8ClampedArray(4 * values.length);
  const width = high > low ? high - low : 1;
  for (let i = 0; i < values.length; i++) {
    const strength = Math.min(1, Math.max(0, (values[i] - low) / width));
    const [r, g, b] = colour(strength);
    data.set([r, g, b, shown && !shown[i] ? 0 : 255 * cover(strength)], 4 * i);
  }
  return data;
}

const scratch = document.createElement("canvas");

// One map over the rectangle of a canvas; crisp patches, or smooth between their centres.
export function drawMap(context, data, [rows, columns], { x, y, width, height }, smooth) {
  scratch.width = columns;
  scratch.height = rows;
  scratch.getContext("2d").putImageData(new ImageData(data, columns, rows), 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.drawImage(scratch, x, y, width, height);
  context.imageSmoothingEnabled = true;
}

export function outline(context, [rows, columns], place, { x, y, width, height }, colours, line = 2) {
  const high = height / rows, wide = width / columns;
  const left = x + (place % columns) * wide, top = y + Math.floor(place / columns) * high;
  context.lineWidth = line + 2;
  context.strokeStyle = colours[1];
  context.strokeRect(left, top, wide, high);
  context.lineWidth = line;
  context.strokeStyle = colours[0];
  context.strokeRect(left, top, wide, high);
}

export function percent(value, digits = 2) {
  return `${(100 * value).toPrecision(Math.max(1, digits + (value >= 0.1 ? 1 : 0)))} %`;
}

export function compact(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("-", "−");
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

export function where(place, columns) {
  return `row ${Math.floor(place / columns)}, column ${place % columns}`;
}

export function correlation(a, b) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const ma = mean(a), mb = mean(b);
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) { ab += (a[i] - ma) * (b[i] - mb); aa += (a[i] - ma) ** 2; bb += (b[i] - mb) ** 2; }
  return ab / Math.sqrt(aa * bb);
}
