// The attention map as a file: SVG (one rectangle per patch), PNG (the same drawing) or CSV (its numbers).

import { el } from "./dom.js";
import { csv, download, escaped } from "./files.js";
import { colour, cover, evenAt, evenText, percent, scaleEnds } from "./patch_maps.js";

const GAP = 24, HEAD = 64, FOOT = 56, BAR = 96;

export function saver(page) {
  return saveButtons({ svg: "SVG", png: "PNG", csv: "CSV" }, (kind) => save(page, kind));
}

// One button per file type; kinds: {type: label}.
export function saveButtons(kinds, onsave) {
  return el("div", { class: "field" }, el("span", { class: "label", id: "save-label" }, "Save"),
    el("div", { class: "group", role: "group", "aria-labelledby": "save-label" }, Object.entries(kinds).map(([kind, name]) =>
      el("button", { type: "button", "data-save": kind, onclick: () => onsave(kind) }, name))));
}

export function fileName(image, ending, beside = "") {
  return `${image.name.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/(\.nii)?\.[a-z]+$/i, "")}-attention${beside}.${ending}`;
}

async function save(page, kind) {
  const shown = page.panels.filter((panel) => panel.look && panel.shown && !panel.node.hidden);
  if (!shown.length) return;
  const data = kind === "csv" ? new Blob([csv(table(page, shown))], { type: "text/csv" })
    : kind === "svg" ? new Blob([drawing(shown)], { type: "image/svg+xml" }) : await picture(shown);
  download(data, fileName(shown[0].shown.view.image, kind));
}

const COLUMNS = ["panel", "model", "kind", "layer", "head", "row", "column", "patch", "value", "shown", "times_even_share", "query", "image", "label"];

function table(page, shown) {
  const rows = [COLUMNS];
  shown.forEach((panel) => {
    const { look, shown: { map, kind, head, inside, view, even, place: query } } = panel, side = page.panels.indexOf(panel);
    const named = head === "mean" ? "mean" : head;
    const layer = kind === "attention" ? look.layerName(view.layer) : "all";
    map.forEach((value, place) => rows.push([
      "AB"[side], look.name, kind, layer, named, Math.floor(place / look.grid[1]), place % look.grid[1],
      look.patchAt(place), value.toPrecision(8), inside && !inside[place] ? 0 : 1,
      kind === "similarity" ? "" : (value / even).toPrecision(6), query === null ? (kind === "similarity" ? "whole image" : "class token") : `${Math.floor(query / look.grid[1])}/${query % look.grid[1]}`,
      view.image.name, view.image.label]));
  });
  return rows;
}

function asPng(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.toDataURL("image/png");
}

function sizeOf(shown) {
  const boxes = shown.map(({ look }) => {
    const factor = 448 / Math.max(...look.size_px);
    return { width: look.size_px[1] * factor, height: look.size_px[0] * factor };
  });
  const width = boxes.reduce((sum, box) => sum + box.width + GAP, GAP);
  return { boxes, width, height: HEAD + Math.max(...boxes.map((box) => box.height)) + FOOT };
}

// The query, layer and head of a picture in words.
export function asks(look, shown) {
  const who = shown.place === null ? (look.kind === "similarity" ? "the whole image" : "the class token")
    : `the patch in row ${Math.floor(shown.place / look.grid[1])}, column ${shown.place % look.grid[1]}`;
  if (shown.kind !== "attention") return `${shown.kind === "rollout" ? "rollout of" : "similarity to"} ${who}`;
  const head = shown.head === "mean" ? "mean of all heads" : `head ${shown.head}`;
  return `${who} asks; layer ${look.layerName(shown.view.layer)}, ${head}`;
}

function overlay(shown, look, box, x, y, smooth) {
  const [rows, columns] = look.grid;
  if (smooth) {
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    canvas.getContext("2d").putImageData(new ImageData(shown.data, columns, rows), 0, 0);
    return `<image x="${x}" y="${y}" width="${box.width}" height="${box.height}" preserveAspectRatio="none" href="${canvas.toDataURL("image/png")}"/>`;
  }
  const wide = box.width / columns, high = box.height / rows, span = shown.limits.high - shown.limits.low || 1;
  const parts = [];
  shown.map.forEach((value, i) => {
    if (shown.inside && !shown.inside[i]) return;
    const strength = Math.min(1, Math.max(0, (value - shown.limits.low) / span));
    parts.push(`<rect x="${(x + (i % columns) * wide).toFixed(2)}" y="${(y + Math.floor(i / columns) * high).toFixed(2)}" ` +
      `width="${wide.toFixed(2)}" height="${high.toFixed(2)}" fill="rgb(${colour(strength).map(Math.round)})" fill-opacity="${cover(strength).toFixed(3)}"/>`);
  });
  return `<g shape-rendering="crispEdges">${parts.join("")}</g>`;
}

// The colours from the low to the high end, with a tick at the even share.
function colourBar({ kind, limits, even }, x, y) {
  const steps = Array.from({ length: BAR / 3 }, (_, i) => `<rect x="${x + 3 * i}" y="${y}" width="3.2" height="12" ` +
    `fill="rgb(${colour(i / (BAR / 3 - 1))})"/>`);
  const at = evenAt(kind, limits, even);
  return steps.join("") + (at === null ? "" : `<rect class="tick" x="${x + at * BAR - 1}" y="${y - 3}" width="2" height="18"/>`);
}

export function imageText({ name, label }) { return label ? `${name}, ${label}` : name; }

function drawing(shown) {
  const { boxes, width, height } = sizeOf(shown), name = imageText(shown[0].shown.view.image);
  let x = GAP;
  const parts = shown.map((panel, side) => {
    const { look, shown: one } = panel, { view } = one, box = boxes[side], at = x;
    x += box.width + GAP;
    const image = asPng(view.colour ? look.picture : look.greyPicture);
    const [rows, columns] = look.grid, wide = box.width / columns, high = box.height / rows;
    const mark = one.place === null ? "" : `<rect x="${at + (one.place % columns) * wide}" y="${HEAD + Math.floor(one.place / columns) * high}" ` +
      `width="${wide}" height="${high}" fill="none" stroke="#000" stroke-width="4"/><rect x="${at + (one.place % columns) * wide}" ` +
      `y="${HEAD + Math.floor(one.place / columns) * high}" width="${wide}" height="${high}" fill="none" stroke="#fff" stroke-width="2"/>`;
    return `<text x="${at}" y="26" font-size="15" font-weight="600">${escaped(panel.caption.textContent)}</text>` +
      `<text x="${at}" y="48" font-size="13">${escaped(asks(look, one))}</text>` +
      `<image x="${at}" y="${HEAD}" width="${box.width}" height="${box.height}" preserveAspectRatio="none" href="${image}"/>` +
      overlay(one, look, box, at, HEAD, view.smooth) + mark +
      colourBar(one, at, HEAD + box.height + 9) + `<text x="${at + BAR + 12}" y="${HEAD + box.height + 20}" font-size="12">` +
      escaped(`${scaleEnds(one.kind, one.limits, one.even).join(" to ")}${one.kind === "similarity" ? "" : `; ${evenText(one.even)}`}`) +
      `${view.keep < 1 ? escaped(`; the patches that hold ${percent(view.keep)}`) : ""}</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="system-ui, sans-serif" fill="#1c1e21"><title>${escaped(name)}</title><rect width="100%" height="100%" fill="#fff"/>` +
    `${parts.join("")}<text x="${GAP}" y="${height - 10}" font-size="12" fill="#5c6167">${escaped(name)} · saccade</text></svg>`;
}

async function picture(shown) {
  const { width, height } = sizeOf(shown), dots = 2;
  const url = URL.createObjectURL(new Blob([drawing(shown)], { type: "image/svg+xml" }));
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = dots * width;
  canvas.height = dots * height;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
