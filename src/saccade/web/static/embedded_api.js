// Replaces server_api.js in single-file pages: the same requests, answered from data inside the page.

import { block, bytes, inflated, unpacked, dequantiseRow } from "./embedded_data.js";

export const live = false;

export class ServerError extends Error {
  constructor(status, said) {
    super(said.what);
    this.status = status;
    this.said = said;
  }
}

const { models, images, looks, note } = block();
export const said = note;

function refuse(what, hint) {
  throw new ServerError(400, { what, hint });
}

const opened = new Map();

// A model view, unpacked once; rows are computed on request.
async function look({ model, image }) {
  const key = `${model}/${image}`;
  if (!opened.has(key)) {
    const { signed, layers, ...rest } = looks[key];
    const whole = signed ? null : await Promise.all(layers.map(unpacked));
    opened.set(key, { ...rest, signed: signed ? await inflated(signed) : null, layers: whole });
  }
  return opened.get(key);
}

// [H R N] of one layer: of weights, or of similarities, whose codes have a sign.
function rows(found, layer, first, count) {
  const { width, about: { heads } } = found, values = new Float32Array(heads * count * width);
  if (found.signed) {
    for (let i = 0; i < values.length; i++) values[i] = (found.signed[first * width + i] - 128) / 127;
    return values;
  }
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < count; row++) {
      dequantiseRow(found.layers[layer], head * width + first + row, width, values, (head * count + row) * width);
    }
  }
  return values;
}

function allLayers(found, token) {
  if (found.signed) return rows(found, 0, token, 1);
  const size = found.about.heads * found.width, values = new Float32Array(found.layers.length * size);
  found.layers.forEach((_, layer) => values.set(rows(found, layer, token, 1), layer * size));
  return values;
}

// One row of the product of (A + I) / 2 over all layers (Abnar and Zuidema 2020), A the mean over heads.
function rollout(found, first, count) {
  if (count > 1) refuse("one row at a time");
  if (found.about.whole !== found.layers.length) refuse("rollout needs all layers; this page keeps some of them");
  const { width, about: { heads } } = found;
  let weights = new Float32Array(width);
  weights[first] = 1;
  for (let layer = found.layers.length - 1; layer >= 0; layer--) {
    const next = weights.map((value) => value / 2);
    for (let token = 0; token < width; token++) {
      if (weights[token] < 1e-9) continue;
      const row = rows(found, layer, token, 1), share = weights[token] / (2 * heads);
      for (let i = 0; i < row.length; i++) next[i % width] += share * row[i];
    }
    weights = next;
  }
  return weights;
}

export async function json(path, query) {
  if (path === "attention/models") return models.map((model) => ({ run: null, fresh: false, ...model }));
  if (path === "runs") return [{ id: "page", name: "this page" }];
  if (path === "images") return { total: images.length, images: images.slice(query.start, query.start + query.count) };
  if (path === "attention/view") return (await look(query)).about;
  if (path === "attention/pair") return refuse("This page keeps the weights, not the vectors behind them: saccade view shows query, key and value.");
  return refuse(`this page cannot answer ${path}`);
}

export async function floats(path, query) {
  const found = await look(query);
  if (path === "attention/rows") return rows(found, query.layer, query.first, query.count);
  if (path === "attention/all-layers") return allLayers(found, query.token);
  return rollout(found, query.first, query.count);
}

const png = (text) => new Blob([bytes(text)], { type: "image/png" });

export async function blob(path, query) {
  return png((await look(query)).picture);
}

// Images only: the thumbnail is the image itself.
export function link(path) {
  const [, image] = path.split("/");
  return `data:image/png;base64,${looks[`${models[0].id}/${image}`].picture}`;
}

export async function post() { return refuse("this page has no server"); }
export async function upload() { return refuse("this page has no server"); }
