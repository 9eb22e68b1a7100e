// The map of a volume as a file: PNG (the planes), CSV (one line per patch), NIfTI (the map at every voxel of the volume,
// written by the server as `saccade attend` does).

import { blob } from "./server_api.js";
import { evenAt, evenText, mapPixels, percent, scaleEnds } from "./patch_maps.js";
import { csv, download } from "./files.js";
import { fileName, imageText, saveButtons } from "./save_map.js";

const GAP = 16, LINE = 22, RAMP = 256;

// page: {sides, of: the image that they show}
export function volumeSaver(page, complain) {
  return saveButtons({ png: "PNG", csv: "CSV", nifti: "NIfTI" }, (kind) => save(page, kind).catch(complain));
}

async function save(page, kind) {
  const shown = page.sides.filter((side) => side.map);
  if (!shown.length) return;
  if (kind === "csv") download(csv(table(shown)), fileName(page.of, "csv"), "text/csv");
  else if (kind === "png") download(await picture(shown, page.of), fileName(page.of, "png"));
  else for (const side of shown) {
    const { view, look } = side, beside = shown.length > 1 ? `-${side.letter}` : "";
    const query = { ...look.query, token: side.token(side.asked), layer: view.layer, rollout: view.kind === "rollout",
      head: view.head === "mean" ? undefined : view.head, keep: view.keep < 1 ? view.keep : undefined };
    download(await blob("attention/nifti", query), fileName(page.of, "nii.gz", beside));
  }
}

function table(shown) {
  const table = [["panel", "model", "kind", "layer", "head", "slice", "row", "column", "value", "shown"]];
  for (const { letter, look, map, inside, view } of shown) {
    const [, rows, columns] = look.grid;
    map.forEach((value, place) => table.push([letter, look.name, view.kind, view.kind === "attention" ? view.layer : "all", view.head,
      Math.floor(place / (rows * columns)), Math.floor(place / columns) % rows, place % columns, value.toPrecision(8),
      inside && !inside[place] ? 0 : 1]));
  }
  return table;
}

// The pixels of the planes, a row a model, with their captions, who asks, and the scale.
function picture(shown, image) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d"), side = shown[0].planes[0].canvas.width;
  const high = 2 * LINE + side + LINE + 2 * GAP, wide = 3 * (side + GAP) + GAP;
  canvas.width = wide;
  canvas.height = shown.length * high + LINE + GAP;
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, font, colour = "#1c1e21") => { context.font = `${font} system-ui, sans-serif`; context.fillStyle = colour; context.fillText(text, x, y); };
  shown.forEach((one, number) => {
    const top = number * high + GAP, foot = top + 2 * LINE + side + LINE - 6;
    write(`${one.title}: ${one.asks}`, GAP, top + LINE - 6, "600 15px");
    one.planes.forEach((plane, i) => {
      const left = GAP + i * (side + GAP);
      write(plane.caption.textContent, left, top + 2 * LINE - 8, "13px");
      context.drawImage(plane.canvas, left, top + 2 * LINE);
    });
    const { limits, even, view: { kind } } = one, at = evenAt(kind, limits, even);
    const ramp = mapPixels(Float32Array.from({ length: RAMP }, (_, i) => i / (RAMP - 1)), { low: 0, high: 1 });
    for (let i = 0; i < RAMP; i++) {
      context.fillStyle = `rgb(${ramp[4 * i]} ${ramp[4 * i + 1]} ${ramp[4 * i + 2]})`;
      context.fillRect(GAP + i, foot - 10, 1, 10);
    }
    context.fillStyle = "#1c1e21";
    if (at !== null) context.fillRect(GAP + at * RAMP - 1, foot - 13, 2, 16);
    write(`${scaleEnds(kind, limits, even).join(" to ")}${kind === "similarity" ? "" : `; ${evenText(even)}`}${one.view.keep < 1 ? `; the patches that hold ${percent(one.view.keep)}` : ""}`, 2 * GAP + RAMP, foot, "12px");
  });
  write(`${imageText(image)} · saccade`, GAP, canvas.height - GAP, "12px", "#5c6167");
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
