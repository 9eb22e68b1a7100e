// One image in one network: requests from the server, with a cache.

import { blob, floats, json } from "./server_api.js";

const WHOLE = 2 ** 20; // numbers of one layer that are fetched at once, so that moving the mouse needs no request

export class ModelView {
  // query: {model, image, size, shuffle, positions} as the server takes them; base: path of the request
  constructor(query, about, picture, grey, base = "attention") {
    Object.assign(this, about);
    this.query = query;
    this.base = base;
    this.picture = picture;
    this.greyPicture = grey;
    this.tokens = this.prefix + this.grid.reduce((product, length) => product * length, 1);
    this.blocks = new Map();
    this.places = this.order ? inverse(this.order) : null;
  }

  static async open(query, signal, base = "attention") {
    const about = await json(`${base}/view`, query, signal);
    const picture = await createImageBitmap(await blob(`${base}/picture`, query, signal));
    return new ModelView(query, about, picture, greyed(picture), base);
  }

  // A volume: its voxels as bytes, z slowest, instead of a picture.
  static async volume(query, signal) {
    const about = await json("attention/view", query, signal);
    const look = new ModelView(query, about, null, null);
    look.cube = new Uint8Array(await (await blob("attention/cube", query, signal)).arrayBuffer());
    return look;
  }

  // Of kinds "attention", "rollout", "similarity"; values [heads, tokens].
  async rows(kind, layer, token, signal) {
    const now = this.rowsNow(kind, layer, token);
    if (now) return now;
    const key = `${kind}/${layer}`;
    const heads = kind === "attention" ? this.heads : 1;
    const path = `${this.base}/${kind === "rollout" ? "rollout" : "rows"}`;
    const asked = { ...this.query, layer: kind === "rollout" ? undefined : layer };
    const one = await floats(path, { ...asked, first: token, count: 1 }, signal);
    if (heads * this.tokens ** 2 <= WHOLE && !this.blocks.has(key)) {
      this.blocks.set(key, null); // on its way
      floats(path, { ...asked, first: 0, count: this.tokens })
        .then((values) => this.blocks.set(key, values), () => this.blocks.delete(key));
    }
    return one;
  }

  rowsNow(kind, layer, token) {
    const block = this.blocks.get(`${kind}/${layer}`);
    if (!block) return null;
    const heads = kind === "attention" ? this.heads : 1, count = this.tokens;
    const found = new Float32Array(heads * count);
    for (let head = 0; head < heads; head++) {
      const start = (head * count + token) * count;
      found.set(block.subarray(start, start + count), head * count);
    }
    return found;
  }

  // The name of a layer, counted from 1; a single-file page may hold some layers only.
  layerName(layer) { return this.layers?.[layer] ?? layer; }
  get wholeDepth() { return this.whole ?? this.depth; }

  // The uniform weight of a query in a layer: 1 over the number of keys it attends to; of rollout, of all.
  evenShare(kind, layer, token) {
    return this.even ?? 1 / ((kind === "attention" && this.visible?.[this.layerName(layer)]?.[token]) || this.tokens);
  }

  allLayers(token, signal) {
    return floats("attention/all-layers", { ...this.query, token }, signal);
  }

  pair(layer, head, query, key, signal) {
    return json("attention/pair", { ...this.query, layer, head, query, key }, signal);
  }

  // The head with the largest weight of a key; rows [heads, tokens].
  headOf(rows, key) {
    let best = 0;
    for (let head = 1; head < this.heads; head++) if (rows[head * this.tokens + key] > rows[best * this.tokens + key]) best = head;
    return best;
  }

  // Patches of the image and positions on the screen, which are the same unless patches are shuffled.
  placeOf(patch) { return this.places ? this.places[patch] : patch; }
  patchAt(place) { return this.order ? this.order[place] : place; }
}

function inverse(order) {
  const places = new Array(order.length);
  order.forEach((patch, place) => { places[patch] = place; });
  return places;
}

// Below a map the image is grey, so that its colours are not mistaken for attention.
function greyed(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.filter = "grayscale(1)";
  context.drawImage(picture, 0, 0);
  return canvas;
}

// Values [heads, tokens] to one map over the patches: a head, or the mean of all.
export function selectHead(values, tokens, prefix, head) {
  const count = tokens - prefix, heads = values.length / tokens;
  if (head !== "mean") return values.slice(head * tokens + prefix, (head + 1) * tokens);
  const found = new Float32Array(count);
  for (let h = 0; h < heads; h++) for (let i = 0; i < count; i++) found[i] += values[h * tokens + prefix + i] / heads;
  return found;
}

// The weight of class and register tokens.
export function prefixMass(values, tokens, prefix, head) {
  const heads = values.length / tokens;
  let sum = 0;
  for (let h = 0; h < heads; h++) {
    if (head !== "mean" && h !== head) continue;
    for (let i = 0; i < prefix; i++) sum += values[h * tokens + i] / (head === "mean" ? heads : 1);
  }
  return sum;
}
