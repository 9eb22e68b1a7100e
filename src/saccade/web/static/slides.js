// Slides: deep zoom, and what is chosen on them. The slides of a hierarchy are gone into region by region (regions.js), others
// tile by tile: the tiles that are like the one clicked, and its patches.

import { floats, json } from "./server_api.js";
import { el, field, replace, say, select } from "./dom.js";
import { TileView } from "./tile_view.js";
import { waitForSlide, unreadableNote } from "./slide_progress.js";
import { compact, range } from "./patch_maps.js";
import { latest } from "./latest_request.js";
import { Regions } from "./slide_regions.js";
import { heatmapOf, SlideViewer } from "./slide_viewer.js";
import { showLoading } from "./loading.js";

const HEADING = "Slides";

export async function show(root, context) {
  const { signal } = context;
  showLoading(root, HEADING, "Opening the slides of all runs and looking for tissue on them. The first time takes a while.");
  const [{ slides: listed, missing }, models] = await Promise.all([json("slides", {}, signal), json("attention/models", {}, signal)]);
  const slides = listed.map((one) => ({ ...one, title: `${one.name} · ${one.run_name}` }));
  const title = el("h1", null, HEADING), lost = absent(missing);
  if (!slides.length) {
    replace(root, title, lost, el("p", null, "No slide models found. ", el("code", null, "saccade pretrain SLIDES --out RUN"),
      " creates one; ", el("code", null, "saccade view RUN"), " opens it."));
    return;
  }
  await SlideViewer.load();
  const place = el("div"), planar = models.filter(({ axes }) => axes === 2);
  const names = slides.map((one) => ({ value: one.id, text: one.title }));
  const openings = latest();
  let view = null, own = null;
  async function open(id) {
    const slide = slides.find((one) => one.id === id), still = openings();
    if (view?.kind !== slide.kind) {
      own?.abort(); // cancel requests of the previous view
      own = new AbortController();
      signal.addEventListener("abort", () => own.abort());
      const pick = field("Slide", select(names, id, (other) => open(other)));
      view = slide.kind === "regions" ? new Regions(pick, own.signal) : new Tiles(pick, own.signal, planar);
      replace(place, view.node);
    }
    try {
      await view.open(slide);
    } catch (error) {
      if (!signal.aborted && still()) view.complain(error);
    }
  }
  replace(root, title, lost, place);
  await open(slides[0].id);
}

// Slides that cannot be shown are listed.
function absent(missing) {
  if (!missing.length) return null;
  const count = missing.length === 1 ? "One slide" : `${missing.length.toLocaleString("en")} slides`;
  return el("details", { class: "note missing", open: missing.length <= 5 }, el("summary", null, `${count} cannot be shown`),
    el("ul", null, missing.map((one) => el("li", null, el("strong", null, one.name), ` (${one.of}): ${one.reason}`))));
}

class Tiles {
  constructor(pick, signal, models) {
    Object.assign(this, { kind: "tiles", signal, models, tile: null, model: null,
      openings: latest(), looks: latest(), questions: latest() });
    this.stage = new SlideViewer(signal, "Slide: drag to move, plus and minus to zoom, click a tile", { click: (x, y) => this.click(x, y) });
    this.inside = new TileView(signal);
    this.words = el("p", { class: "words", role: "status" });
    this.scale = el("div", { class: "scale" });
    this.modelPlace = el("div");
    const tools = el("div", { class: "tools noprint" }, el("div", { class: "row" }, pick, this.modelPlace,
      el("button", { type: "button", onclick: () => this.ask(null) }, "Similarity to slide average"),
      field("Heatmap", el("input", { type: "range", min: 0, max: 100, step: 5, value: 100 * this.stage.opacity,
        oninput: (event) => this.stage.fade(Number(event.target.value) / 100) }))));
    this.node = el("div", { class: "slides-grid" }, el("div", null, tools, this.stage.node, this.scale, this.words), this.inside.node);
  }

  // Remove everything of another model or slide.
  complain(error) {
    this.questions();
    this.stage.show(null, []);
    replace(this.scale);
    this.inside.wait(el("h2", null, "Inside the tile"));
    replace(this.words, el("span", { role: "alert" }, error.message), error.said?.hint ? ` ${error.said.hint}` : null);
  }

  async open(slide) {
    const still = this.openings();
    this.looks();
    replace(this.words, `Opening ${slide.title}.`);
    const about = await json(`slides/${slide.id}`, {}, this.signal);
    if (!still()) return;
    Object.assign(this, { slide, about, tile: null });
    this.index = new Map(this.about.cells.map(([row, column], i) => [`${row}/${column}`, i]));
    this.model ??= this.models.find((model) => model.run === slide.run)?.id ?? this.models[0].id;
    replace(this.modelPlace, field("Model", select(this.models.map(({ id, name }) => ({ value: id, text: name })), this.model,
      (id) => { this.model = id; this.look().catch((error) => this.complain(error)); })));
    this.stage.open(slide.id, this.about);
    this.inside.wait(el("h2", null, "Inside the tile"), el("p", { class: "soft" }, "Click a tile of the slide: the tiles that the model finds like it light up, and its patches are here."));
    await this.look();
  }

  // Features of all tiles are computed once; until then the page shows the progress.
  async look() {
    const still = this.looks();
    this.questions();
    this.stage.show(null, []);
    await waitForSlide(`slides/${this.slide.id}/features`, { model: this.model }, this.signal, (words) => { if (still()) replace(this.words, words); });
    if (still() && !this.signal.aborted) await this.ask(this.tile);
  }

  click(x, y) {
    const [down, across] = this.about.step_px, tile = this.index.get(`${Math.floor(y / down)}/${Math.floor(x / across)}`);
    if (tile === undefined) replace(this.words, "No tile here: too little tissue.");
    else this.ask(tile);
  }

  async ask(tile) {
    const still = this.questions();
    this.tile = tile;
    const scores = await floats(`slides/${this.slide.id}/similarity`, { model: this.model, tile }, this.signal).catch((error) => {
      if (still() && !this.signal.aborted) this.complain(error);
    });
    if (!scores || !still()) return;
    const { low, high } = range(scores), limits = { low: tile === null ? low : Math.max(-0.2, low), high };
    const { cells, step_px: [down, across] } = this.about;
    const marks = tile === null ? [] : [{ box: [cells[tile][1] * across, cells[tile][0] * down, across, down] }];
    this.stage.show(heatmapOf(cells, this.about.step_px, scores, limits), marks);
    replace(this.scale, el("span", null, compact(limits.low)), el("span", { class: "ramp" }), el("span", null, compact(limits.high)));
    const what = tile === null ? `How like the mean of all ${scores.length.toLocaleString("en")} tiles each one is (cosine).`
      : `How like the marked tile each of ${scores.length.toLocaleString("en")} is (cosine, less what all share).`;
    const words = what + unreadableNote(scores.reduce((count, score) => count + Number.isNaN(score), 0), this.slide.name);
    replace(this.words, words);
    say(words);
    if (tile !== null) await this.inside.open(this.slide.id, this.about, tile, this.model);
  }
}
