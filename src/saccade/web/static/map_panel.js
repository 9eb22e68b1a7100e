// One model view: the image with the map of the query patch, its scale, and a small map of every head.

import { el, replace } from "./dom.js";
import { asks, imageText } from "./save_map.js";
import { selectHead, prefixMass } from "./model_view.js";
import { almostUniform, compact, drawMap, mask, outline, mapPixels, percent, range, scaleBar, scaleLimits, where } from "./patch_maps.js";

const SIDE = 448, SMALL = 72;

export class Panel {
  // events: {hover(place | null), pick(place), head(h), where(place, columns): what a place is called}
  constructor(title, events) {
    this.look = null;
    this.canvas = el("canvas", { class: "map", tabindex: "0", role: "img", "aria-label": title });
    this.scale = el("div", { class: "scale" });
    this.words = el("p", { class: "words" });
    this.heads = el("div", { class: "heads", role: "group", "aria-label": "Heads" });
    this.caption = el("figcaption");
    this.context = el("p", { class: "context soft" });
    this.trouble = el("div", { class: "note", role: "alert", hidden: true });
    this.node = el("figure", { class: "panel" }, this.caption, this.context, this.trouble, this.canvas, this.scale, this.words, this.heads);
    this.canvas.addEventListener("pointermove", (event) => events.hover(this.placeUnder(event)));
    this.canvas.addEventListener("pointerleave", () => events.hover(null));
    this.canvas.addEventListener("click", (event) => events.pick(this.placeUnder(event)));
    this.events = { where, ...events };
    this.shown = null;
  }

  setLook(look, name) {
    this.look = look;
    this.shown = null; // the numbers are those of the previous model view
    for (const part of [this.context, this.scale, this.words]) replace(part);
    this.trouble.hidden = true;
    this.canvas.hidden = false;
    const [height, width] = look.size_px;
    const factor = SIDE / Math.max(height, width), dots = devicePixelRatio || 1;
    this.width = Math.round(width * factor * dots);
    this.height = Math.round(height * factor * dots);
    this.canvas.width = this.width;
    this.canvas.height = this.height;
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    replace(this.caption, name);
    const heads = look.kind === "attention" ? look.heads : 0;
    this.smalls = Array.from({ length: heads }, (_, head) => el("canvas", { width: SMALL, height: SMALL }));
    this.buttons = this.smalls.map((canvas, head) => el("button", {
      type: "button", "aria-label": `Head ${head}`, title: `Head ${head}`, onclick: () => this.events.head(head),
    }, canvas));
    replace(this.heads, this.buttons);
  }

  // The content belongs to another model or image: replaced by the reason.
  refuse(error, name) {
    this.look = this.shown = null;
    this.canvas.hidden = true;
    this.trouble.hidden = false;
    replace(this.caption, name);
    replace(this.trouble, el("strong", null, error.message), error.said?.hint ? el("p", null, error.said.hint) : null);
    for (const part of [this.context, this.scale, this.words, this.heads]) replace(part);
  }

  placeUnder(event) {
    if (!this.look) return null;
    const box = this.canvas.getBoundingClientRect();
    const [rows, columns] = this.look.grid;
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    if (row < 0 || column < 0 || row >= rows || column >= columns) return null;
    return row * columns + column;
  }

  // values [heads, tokens]; view: {layer, head, keep, smooth, colour, stretch, place, pointed, limits}, and for what is saved {image}
  draw(values, kind, view) {
    const { look } = this;
    const head = kind === "attention" ? view.head : "mean";
    const map = selectHead(values, look.tokens, look.prefix, head);
    // In a region, positions without a tile are empty.
    const own = range(look.has_tile ? map.filter((_, i) => look.has_tile[i]) : map), even = this.even(kind, view);
    const limits = view.limits ?? scaleLimits(kind, own, even, view.stretch);
    const inside = view.keep < 1 ? mask(map, view.keep) : null;
    const data = mapPixels(map, limits, inside ?? look.has_tile);
    this.shown = { map, data, limits, even, inside, kind, head, place: view.place, view };
    replace(this.context, view.image ? `${imageText(view.image)} · ` : "", asks(look, this.shown));
    this.paint(view);
    this.drawHeads(values, kind, view);
    this.say(map, values, kind, head, own, inside, view);
  }

  // The uniform weight of the query: 1 over the number of keys it attends to.
  even(kind, { layer, place }) { return this.look.evenShare(kind, layer, place === null ? 0 : this.look.prefix + place); }

  paint(view) {
    const context = this.canvas.getContext("2d");
    const box = { x: 0, y: 0, width: this.width, height: this.height };
    context.clearRect(0, 0, this.width, this.height);
    context.drawImage(view.colour ? this.look.picture : this.look.greyPicture, 0, 0, this.width, this.height);
    drawMap(context, this.shown.data, this.look.grid, box, view.smooth);
    const line = 2 * (devicePixelRatio || 1);
    if (view.place !== null) outline(context, this.look.grid, view.place, box, ["#ffffff", "#000000"], line);
    if (view.pointed !== null && view.pointed !== view.place) {
      outline(context, this.look.grid, view.pointed, box, ["#4fd1ff", "#000000"], line);
    }
  }

  // Rollout uses the mean over heads: one map, none per head.
  drawHeads(values, kind, view) {
    const { look } = this;
    this.heads.hidden = kind !== "attention";
    if (this.heads.hidden) return;
    this.smalls.forEach((canvas, head) => {
      const map = selectHead(values, look.tokens, look.prefix, head);
      const context = canvas.getContext("2d");
      context.drawImage(look.greyPicture, 0, 0, SMALL, SMALL);
      const inside = view.keep < 1 ? mask(map, view.keep) : look.has_tile;
      const limits = scaleLimits(kind, range(map), this.shown.even, view.stretch);
      drawMap(context, mapPixels(map, limits, inside), look.grid, { x: 0, y: 0, width: SMALL, height: SMALL }, view.smooth);
      this.buttons[head].setAttribute("aria-pressed", view.head === head);
    });
  }

  say(map, values, kind, head, own, inside, view) {
    const { look } = this;
    const alike = kind === "similarity", columns = look.grid[1];
    const number = alike ? compact : percent;
    const { even, limits } = this.shown;
    replace(this.scale, scaleBar(kind, limits, even));
    const most = map.indexOf(own.high);
    const words = [alike ? "Most alike: " : "Most: ", el("strong", null, this.events.where(most, columns)), ` with ${number(own.high)}`];
    if (!alike) {
      const away = prefixMass(values, look.tokens, look.prefix, head);
      words.push(`, ${compact(own.high / even)} times the even share (an even share is ${percent(even)}). `,
        almostUniform(kind, own, even) ? el("b", { class: "uniform" }, "Almost uniform: no patch has twice the even share. ") : "", "Class token",
        look.prefix > 1 ? " and registers take " : " takes ", percent(away), ".");
    } else words.push(".");
    if (view.pointed !== null) {
      words.push(" Under the pointer, ", this.events.where(view.pointed, columns), ": ", el("strong", null, number(map[view.pointed])), ".");
    }
    if (inside) {
      const count = inside.reduce((sum, one) => sum + one, 0);
      words.push(` ${count} of ${map.length} patches hold ${percent(view.keep)} of what goes to patches.`);
    }
    replace(this.words, words);
  }
}

// Layers x heads, all maps of one query on one canvas; a click chooses layer and head.
export class Overview {
  constructor(onchoose) {
    this.canvas = el("canvas", { class: "all-layers", role: "img", "aria-label": "Maps of all layers and heads" });
    this.onchoose = onchoose;
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      const head = Math.floor(((event.clientX - box.left) / box.width) * this.heads);
      const layer = Math.floor(((event.clientY - box.top) / box.height) * this.depth);
      onchoose(layer, head);
    });
  }

  draw(values, look, view) {
    const cell = 44, gap = 4;
    [this.depth, this.heads] = [look.depth, look.heads];
    this.canvas.width = look.heads * (cell + gap);
    this.canvas.height = look.depth * (cell + gap);
    const context = this.canvas.getContext("2d");
    const size = look.heads * look.tokens;
    for (let layer = 0; layer < look.depth; layer++) {
      const part = values.subarray(layer * size, (layer + 1) * size);
      for (let head = 0; head < look.heads; head++) {
        const map = selectHead(part, look.tokens, look.prefix, head);
        const data = mapPixels(map, scaleLimits("attention", range(map), look.evenShare("attention", layer, view.token), view.stretch));
        for (let i = 3; i < data.length; i += 4) data[i] = 255;
        const box = { x: head * (cell + gap) + gap / 2, y: layer * (cell + gap) + gap / 2, width: cell, height: cell };
        drawMap(context, data, look.grid, box, false);
        if (layer === view.layer && (head === view.head || view.head === "mean")) {
          context.strokeStyle = "#4fd1ff";
          context.lineWidth = 2;
          context.strokeRect(box.x - 1, box.y - 1, cell + 2, cell + 2);
        }
      }
    }
  }
}
