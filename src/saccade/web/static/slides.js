// Slides: deep zoom (OpenSeadragon, BSD-3), a heatmap of the tiles that are like the one clicked, and the patches of that tile.

import { floats, json, link } from "./ask.js";
import { el, field, replace, say, select } from "./dom.js";
import { choose, Look } from "./look.js";
import { compact, painted, percent, range } from "./maps.js";
import { Panel } from "./panel.js";

const POLL = 500;

export async function show(root, context) {
  const [slides, models] = await Promise.all([json("slides", {}, context.signal), json("attention/models", {}, context.signal)]);
  if (!slides.length) {
    replace(root, el("h1", null, "Slides"), el("p", null, "No run on slides is on the desk. ", el("code", null, "saccade pretrain SLIDES --out RUN"),
      " makes one; ", el("code", null, "saccade view RUN"), " shows it."));
    return;
  }
  await script("/static/vendor/openseadragon/openseadragon.js");
  await new Slides(root, context, slides, models.filter(({ axes }) => axes === 2)).build();
}

function script(src) {
  if (window.OpenSeadragon) return Promise.resolve();
  // OpenSeadragon would write a style sheet that hides the focus on touch screens, which our policy refuses. It looks for an
  // element of this name and mark first; one without a namespace is found and is no style sheet.
  const mark = document.createElementNS(null, "style");
  mark.setAttribute("data-openseadragon-mobile-css", "true");
  document.head.append(mark);
  return new Promise((done, failed) => document.head.append(el("script", { src, onload: done, onerror: () => failed(new Error("OpenSeadragon did not load")) })));
}

class Slides {
  constructor(root, context, slides, models) {
    Object.assign(this, { root, slides, models, signal: context.signal, slide: slides[0], opacity: 0.55, tile: null, asked: null, head: "mean", layer: null });
    this.model = models.find((model) => model.run === slides[0].run)?.id ?? models[0].id;
  }

  async build() {
    this.stage = el("div", { class: "stage", role: "application", "aria-label": "Slide: drag to move, plus and minus to zoom, click a tile", tabindex: "0" });
    this.heat = el("canvas", { class: "heat", "aria-hidden": "true" });
    this.words = el("p", { class: "words", role: "status" });
    this.scale = el("div", { class: "scale" });
    this.tools = el("div", { class: "tools noprint" });
    this.inside = el("section", { class: "card", "aria-label": "Inside the tile" });
    this.panel = new Panel("Attention inside the tile", { hover: (place) => { this.place = place; this.patches(); }, head: (head) => { this.head = head; this.patches(); },
      pick: (place) => { this.asked = this.asked === place ? null : place; this.patches(); } });
    replace(this.root, el("h1", null, "From the slide to the patch"), el("div", { class: "slides-grid" },
      el("div", null, this.tools, this.stage, this.scale, this.words), this.inside));
    this.drawTools();
    this.signal.addEventListener("abort", () => this.viewer?.destroy());
    await this.open();
  }

  drawTools() {
    replace(this.tools, el("div", { class: "row" },
      field("Slide", select(this.slides.map((one) => ({ value: one.id, text: one.name, group: one.run_name })), this.slide.id, (id) => {
        this.slide = this.slides.find((one) => one.id === id);
        this.open();
      })),
      field("Model", select(this.models.map(({ id, name }) => ({ value: id, text: name })), this.model, (id) => { this.model = id; this.look(); })),
      el("button", { type: "button", onclick: () => this.ask(null) }, "Like the mean of all"),
      field("Heatmap", el("input", { type: "range", min: 0, max: 100, step: 5, value: 100 * this.opacity,
        oninput: (event) => { this.opacity = Number(event.target.value) / 100; this.paint(); } }))));
  }

  async open() {
    this.about = await json(`slides/${this.slide.id}`, {}, this.signal);
    const { size_px: [height, width], zoom_px: side, levels, cells } = this.about;
    this.index = new Map(cells.map(([row, column], i) => [`${row}/${column}`, i]));
    this.viewer?.destroy();
    replace(this.stage);
    this.viewer = window.OpenSeadragon({
      element: this.stage, drawer: "canvas", showNavigationControl: false, showNavigator: false, immediateRender: true, animationTime: 0.4,
      gestureSettingsMouse: { clickToZoom: false }, maxZoomPixelRatio: 4,
      tileSources: { width, height, tileSize: side, tileOverlap: 0, minLevel: 0, maxLevel: levels,
        getTileUrl: (level, x, y) => link(`slides/${this.slide.id}/zoom/${level}/${x}/${y}`) },
    });
    this.stage.append(this.heat);
    this.viewer.addHandler("open", () => this.viewer.viewport.goHome(true));
    this.viewer.addHandler("update-viewport", () => this.paint());
    this.viewer.addHandler("resize", () => this.paint());
    this.viewer.addHandler("tile-drawn", () => { this.stage.dataset.drawn = "yes"; });
    this.viewer.addHandler("canvas-click", (event) => { if (event.quick) this.click(event.position); });
    this.tile = null;
    replace(this.inside, el("h2", null, "Inside the tile"), el("p", { class: "soft" }, "Click a tile of the slide: the tiles that the model finds like it light up, and its patches are here."));
    await this.look();
  }

  // Features of all tiles are made once; until then the bar says how far they are.
  async look() {
    const turn = (this.turn = (this.turn ?? 0) + 1), path = `slides/${this.slide.id}/looks?${new URLSearchParams({ model: this.model })}`;
    this.scores = null;
    this.paint();
    let state = await fetch(`/api/${path}`, { method: "POST", signal: this.signal }).then((answer) => answer.json());
    while (!state.ready && !state.error && turn === this.turn && !this.signal.aborted) {
      replace(this.words, `Looking at the tiles: ${state.done.toLocaleString("en")} of ${state.total.toLocaleString("en")}`);
      await new Promise((done) => setTimeout(done, POLL));
      if (this.signal.aborted) return;
      state = await json(`slides/${this.slide.id}/looks`, { model: this.model }, this.signal);
    }
    if (turn !== this.turn || this.signal.aborted) return;
    if (state.error) { replace(this.words, state.error); return; }
    await this.ask(this.tile);
  }

  click(position) {
    const at = this.viewer.viewport.viewerElementToImageCoordinates(position), [down, across] = this.about.step_px;
    const tile = this.index.get(`${Math.floor(at.y / down)}/${Math.floor(at.x / across)}`);
    if (tile === undefined) { replace(this.words, "There is no tile: too little tissue."); return; }
    return this.ask(tile);
  }

  async ask(tile) {
    this.tile = tile;
    const scores = await floats(`slides/${this.slide.id}/likeness`, { model: this.model, tile }, this.signal).catch(() => null);
    if (!scores || this.tile !== tile) return;
    this.scores = scores;
    this.limits = tile === null ? range(scores) : { low: Math.max(-0.2, range(scores).low), high: range(scores).high };
    const { shape: [rows, columns], cells } = this.about;
    const data = painted(scores, this.limits), pixels = new Uint8ClampedArray(4 * rows * columns);
    cells.forEach(([row, column], i) => {
      if (row >= rows || column >= columns) return;
      pixels.set(data.subarray(4 * i, 4 * i + 3), 4 * (row * columns + column));
      pixels[4 * (row * columns + column) + 3] = 255;
    });
    this.small = document.createElement("canvas");
    this.small.width = columns;
    this.small.height = rows;
    this.small.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
    this.paint();
    replace(this.scale, el("span", null, compact(this.limits.low)), el("span", { class: "ramp" }), el("span", null, compact(this.limits.high)));
    const what = tile === null ? `How like the mean of all ${scores.length.toLocaleString("en")} tiles each one is (cosine).`
      : `How like the marked tile each of ${scores.length.toLocaleString("en")} is (cosine, less what all share).`;
    replace(this.words, what);
    say(what);
    if (tile !== null) await this.enter(tile);
  }

  paint() {
    const { heat, viewer } = this, dots = devicePixelRatio || 1, box = this.stage.getBoundingClientRect();
    heat.width = Math.round(box.width * dots);
    heat.height = Math.round(box.height * dots);
    if (!this.scores || !this.small || !viewer?.world.getItemCount()) return;
    const context = heat.getContext("2d"), { step_px: [down, across], shape: [rows, columns], cells } = this.about;
    const corner = (x, y) => viewer.viewport.imageToViewerElementCoordinates(new window.OpenSeadragon.Point(x, y));
    const from = corner(0, 0), to = corner(columns * across, rows * down);
    context.scale(dots, dots);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = this.opacity;
    context.drawImage(this.small, from.x, from.y, to.x - from.x, to.y - from.y);
    context.globalAlpha = 1;
    if (this.tile === null) return;
    const [row, column] = cells[this.tile], a = corner(column * across, row * down), b = corner((column + 1) * across, (row + 1) * down);
    for (const [style, width] of [["#000000", 5], ["#ffffff", 2.5]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(a.x, a.y, b.x - a.x, b.y - a.y);
    }
  }

  async enter(tile) {
    const image = await json(`slides/${this.slide.id}/tile`, { number: tile }, this.signal);
    try {
      const look = await Look.open({ model: this.model, image: image.id }, this.signal);
      if (this.tile !== tile || this.signal.aborted) return;
      this.asked = this.place = null;
      this.layer = look.depth - 1;
      if (this.head !== "mean" && this.head >= look.heads) this.head = "mean";
      this.panel.setLook(look, look.kind === "attention" ? "Where the class token looks, or the patch under the pointer" : "How alike its places are");
      replace(this.inside, el("h2", null, "Inside the tile"), el("p", { class: "soft" }, `${this.about.tile_px} pixels at ${compact(this.about.mpp)} µm`), this.panel.node,
        el("p", { class: "soft" }, look.kind === "attention" ? `Layer ${this.layer} of 0 to ${this.layer}. ${percent(1 / look.tokens)} is an even share.` : `${look.name} has no attention that could be read.`),
        el("a", { href: `#/explorer?${new URLSearchParams({ image: image.id, a: this.model })}` }, "Every layer and head"));
      await this.patches();
    } catch (error) {
      if (!this.signal.aborted) replace(this.inside, el("h2", null, "Inside the tile"), el("p", { class: "note", role: "alert" }, error.message));
    }
  }

  async patches() {
    const { look } = this.panel, kind = look.kind, place = this.asked ?? this.place ?? null, drawn = (this.drawn = (this.drawn ?? 0) + 1);
    const rows = await look.rows(kind, kind === "attention" ? this.layer : 0, place === null ? 0 : look.prefix + place, this.signal);
    if (drawn !== this.drawn) return;
    this.panel.draw(rows, kind, { head: kind === "attention" ? this.head : "mean", keep: 1, smooth: false, colour: false, place, pointed: null, limits: range(choose(rows, look.tokens, look.prefix, kind === "attention" ? this.head : "mean")) });
    this.inside.dataset.drawn = "yes";
  }
}
