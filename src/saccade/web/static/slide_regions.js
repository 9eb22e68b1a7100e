// A slide of a hierarchy: down from the slide to a region, to one of its tiles, and to the patches of that tile; and up again.

import { floats, json } from "./server_api.js";
import { el, field, redraw, replace, say, select } from "./dom.js";
import { TileView } from "./tile_view.js";
import { selectHead, ModelView } from "./model_view.js";
import { waitForSlide, unreadableNote } from "./slide_progress.js";
import { compact, percent, range } from "./patch_maps.js";
import { latest } from "./latest_request.js";
import { Panel } from "./map_panel.js";
import { heatmapOf, SlideViewer } from "./slide_viewer.js";

const KEYS = [["arrow keys", "the region or tile beside it"], ["Enter", "go into it"], ["Escape", "up again"], ["+ and −", "zoom"],
  ["[ ]", "layer before, after"], [", .", "head before, after"], ["M", "mean of all heads"]];
const MAPS = [["regions", "weight of the regions"], ["tiles", "tiles, each in its region"], ["composed", "tiles, in the slide"]];
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const times = (value) => `${compact(Number(value.toPrecision(3)))} times an even share`;
const named = (what, [row, column]) => `${what} row ${row}, column ${column}`;

export class Regions {
  constructor(pick, signal) {
    // map: what is shown of the whole slide; wish: which of them was chosen by download; region, tile: where one is; cursor: what Enter would go into; asks: whether the tile asks in its region, or the class token
    Object.assign(this, { kind: "regions", signal, map: "regions", wish: null, region: null, tile: null, cursor: null, layer: null, head: "mean", asks: true,
      openings: latest(), drawings: latest(), pointings: latest() });
    this.stage = new SlideViewer(signal, "Slide: arrow keys choose, Enter goes into a region or tile, Escape goes up, plus and minus zoom", {
      click: (x, y) => this.click(x, y), hover: (x, y) => this.hover(x, y), key: (event) => this.key(event),
    });
    this.inside = new TileView(signal);
    this.panel = new Panel("Attention inside the region", {
      hover: (place) => this.point(place), head: (head) => this.set({ head: this.head === head ? "mean" : head }),
      where: (place) => this.named(place), pick: (place) => { const tile = this.tileAtPlace(place); if (tile !== undefined) this.go(this.region, tile); },
    });
    this.aside = el("section", { class: "card", "aria-label": "Inside the region" });
    this.right = el("div", { class: "levels" });
    this.words = el("p", { class: "words", role: "status" });
    this.under = el("p", { class: "reading soft" });
    this.scale = el("div", { class: "scale" });
    this.crumbs = el("ol");
    this.choices = el("div", { class: "row" });
    const fade = field("Heatmap", el("input", { type: "range", min: 0, max: 100, step: 5, value: 100 * this.stage.opacity,
      oninput: (event) => this.stage.fade(Number(event.target.value) / 100) }));
    this.node = el("div", { class: "slides-grid" }, el("div", null,
      el("div", { class: "tools noprint" }, el("div", { class: "row" }, pick, this.choices, fade)),
      el("nav", { class: "crumbs", "aria-label": "Where this is" }, this.crumbs), this.stage.node, this.scale, this.words, this.under,
      el("details", { class: "keys noprint" }, el("summary", null, "Keys"), el("dl", null, KEYS.map(([key, what]) => el("div", null, el("dt", null, key), el("dd", null, what)))))),
    this.right);
    // Wherever the focus is; the stage itself has handled the key before.
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented && this.up()) event.preventDefault();
    }, { signal });
  }

  complain(error) {
    replace(this.words);
    replace(this.right, el("section", { class: "card" }, el("p", { class: "note", role: "alert" }, error.message)));
  }

  async open(slide) {
    const still = this.openings();
    this.drawings(); // cancel drawings in progress
    if (this.slide?.run !== slide.run) this.wish = null;
    Object.assign(this, { slide, found: null, region: null, tile: null, cursor: null, look: null });
    replace(this.scale);
    replace(this.under);
    replace(this.choices);
    replace(this.words, `Opening ${slide.title}.`);
    replace(this.right, el("section", { class: "card" }, el("h2", null, "The slide"), el("p", { class: "soft" }, "The hierarchy is looking at it.")));
    const about = await json(`slides/${slide.id}`, {}, this.signal);
    if (!still()) return;
    this.about = about;
    this.drawCrumbs();
    this.stage.open(slide.id, this.about);
    this.stage.show(null, []);
    await waitForSlide(`regions/${slide.id}/attention`, {}, this.signal, (words) => { if (still()) replace(this.words, words); });
    if (!still() || this.signal.aborted) return;
    const path = `regions/${slide.id}`;
    const [found, weights, tiles, composed] = await Promise.all([json(path, {}, this.signal), floats(`${path}/weights`, {}, this.signal),
      floats(`${path}/tiles`, {}, this.signal), floats(`${path}/tiles`, { composed: true }, this.signal)]);
    if (!still()) return;
    Object.assign(this, { found, weights, tiles, composed, layer: this.layer === null || this.layer >= found.depth ? found.depth - 1 : this.layer });
    if (this.head !== "mean" && this.head >= found.heads) this.head = "mean";
    // Without weights of regions there is nothing to show.
    const usual = this.weighed() ? "regions" : "tiles";
    this.map = this.wish === null || this.wish === "regions" ? usual : this.wish;
    this.atRegion = new Map(found.regions.map(([row, column], i) => [`${row}/${column}`, i]));
    const cells = this.about.cells.map(([row, column], i) => [`${row}/${column}`, i]), unread = new Set(found.unread);
    this.atTile = new Map(cells.filter(([, i]) => !unread.has(i)));
    this.blank = new Set(cells.filter(([, i]) => unread.has(i)).map(([cell]) => cell));
    await this.go(null, null);
  }

  // --- going down and up -----------------------------------------------------------------------------

  async go(region, tile) {
    const { found, slide } = this, moved = region !== this.region;
    const held = [this.right, this.crumbs].some((part) => part.contains(document.activeElement));
    Object.assign(this, { region, tile, cursor: null });
    this.drawCrumbs();
    this.drawChoices();
    if (held) this.stage.node.focus(); // the button that was pressed is gone
    if (region === null) {
      this.look = null;
      this.stage.home();
      this.drawSide();
      return this.draw();
    }
    if (moved || !this.look) {
      this.stage.goTo(this.boxOf(region));
      try {
        const look = await ModelView.open({}, this.signal, `regions/${slide.id}/${region}`);
        if (this.region !== region || this.slide !== slide) return undefined;
        this.look = look;
        this.panel.setLook(look, "Point at a tile: it asks; click it to go in");
      } catch (error) {
        if (!this.signal.aborted && this.region === region && this.slide === slide) this.complain(error);
        return undefined;
      }
    }
    this.drawSide();
    if (this.tile !== null) this.inside.open(this.slide.id, this.about, this.tile, found.tile_model);
    return this.draw();
  }

  up() {
    if (!this.found || this.region === null) return false;
    const from = this.tile ?? this.region, to = this.tile === null ? null : this.region;
    this.go(to, null).then(() => { if (this.region === to && this.tile === null) this.choose(from); });
    return true;
  }

  click(x, y) {
    if (!this.found) return;
    const { region, tile, blank } = this.at(x, y);
    if (blank && (region === undefined || region === this.region)) replace(this.words, `This tile cannot be read in ${this.slide.name}.`);
    else if (region === undefined) replace(this.words, tile === undefined ? "No tile here: too little tissue." : "This tile lies in no region: too little tissue around it.");
    else if (this.region !== region) this.go(region, null);
    else if (tile !== undefined) this.go(region, tile);
  }

  // Region or tile at a position of level 0.
  at(x, y) {
    const [down, across] = this.about.step_px, row = Math.floor(y / down), column = Math.floor(x / across), { side } = this.found;
    const cell = `${row}/${column}`;
    return { tile: this.atTile.get(cell), blank: this.blank.has(cell), region: this.atRegion.get(`${Math.floor(row / side)}/${Math.floor(column / side)}`) };
  }

  key(event) {
    if (!this.found) return false;
    const step = STEPS[event.key];
    if (step) this.move(step);
    else if (event.key === "Enter" && this.cursor !== null) { if (this.region === null) this.go(this.cursor, null); else this.go(this.region, this.cursor); }
    else if (event.key === "Escape") return this.up();
    else if (this.region !== null && ["[", "]"].includes(event.key)) this.set({ layer: Math.min(this.found.depth - 1, Math.max(0, this.layer + (event.key === "]" ? 1 : -1))) });
    else if (this.region !== null && [",", "."].includes(event.key)) {
      const heads = this.found.heads, now = this.head === "mean" ? (event.key === "." ? -1 : heads) : this.head;
      this.set({ head: (now + (event.key === "." ? 1 : -1) + heads) % heads });
    } else if (this.region !== null && event.key.toLowerCase() === "m") this.set({ head: "mean" });
    else return false;
    return true;
  }

  // The nearest region, or tile of the region, in one direction; along it counts less than across it.
  move([down, right]) {
    const all = this.region === null ? this.found.regions : this.about.cells;
    const open = all.map((_, i) => i).filter((i) => this.region === null || this.found.region_of[i] === this.region);
    const from = this.cursor ?? this.tile;
    if (from === null) { this.choose(open[0]); return; }
    const far = (i) => {
      const y = all[i][0] - all[from][0], x = all[i][1] - all[from][1], ahead = y * down + x * right;
      return ahead > 0 ? ahead + 3 * Math.abs(y * right + x * down) : Infinity;
    };
    const next = open.reduce((best, i) => (far(i) < far(best) ? i : best), from);
    if (next === from) return;
    if (this.tile !== null) this.go(this.region, next); else this.choose(next);
  }

  choose(number) {
    this.cursor = number;
    this.drawMarks();
    const words = this.region === null ? this.regionWords(number) : this.tileWords(number);
    replace(this.under, words);
    say(words);
  }

  set(values) {
    Object.assign(this, values);
    this.drawChoices();
    this.draw();
  }

  // --- what is drawn ---------------------------------------------------------------------------------

  // Whether regions have weights: without slide level and head all count equally.
  weighed() {
    const { low, high } = range(this.weights);
    return high > low;
  }

  boxOf(region) {
    const [down, across] = this.about.step_px, { side } = this.found, [row, column] = this.found.regions[region];
    return [column * side * across, row * side * down, side * across, side * down];
  }

  boxOfTile(tile) {
    const [down, across] = this.about.step_px, [row, column] = this.about.cells[tile];
    return [column * across, row * down, across, down];
  }

  drawCrumbs() {
    const steps = [[this.slide.title, () => this.go(null, null)]];
    if (this.region !== null) steps.push([named("Region", this.found.regions[this.region]), () => this.go(this.region, null)]);
    if (this.tile !== null) steps.push([named("Tile", this.about.cells[this.tile]), null]);
    replace(this.crumbs, steps.map(([name, back], i) => el("li", null, i === steps.length - 1
      ? el("span", { "aria-current": "location" }, name) : el("button", { type: "button", class: "quiet", onclick: back }, name))));
  }

  drawChoices() {
    if (this.region === null) {
      const maps = MAPS.filter(([value]) => value !== "regions" || this.weighed());
      replace(this.choices, field("Shows", select(maps.map(([value, text]) => ({ value, text })), this.map, (map) => this.set({ map, wish: map }))));
      return;
    }
    const count = (n, what) => Array.from({ length: n }, (_, i) => ({ value: String(i), text: `${what} ${i}` }));
    redraw(this.choices, () => replace(this.choices,
      field("Layer", select(count(this.found.depth, "layer"), String(this.layer), (layer) => this.set({ layer: Number(layer) }))),
      field("Head", select([{ value: "mean", text: "mean of all" }, ...count(this.found.heads, "head")], String(this.head),
        (head) => this.set({ head: head === "mean" ? head : Number(head) }))),
      this.tile === null ? null : field("Query", select([{ value: "tile", text: "marked tile" }, { value: "class", text: "the class token" }],
        this.asks ? "tile" : "class", (who) => this.set({ asks: who === "tile" })))));
  }

  drawSide() {
    if (this.region === null) {
      const { found } = this;
      const best = this.weights.reduce((best, value, i) => (value > this.weights[best] ? i : best), 0);
      replace(this.right, el("section", { class: "card" }, el("h2", null, "The slide"),
        el("p", null, `${found.regions.length.toLocaleString("en")} regions of ${found.side} × ${found.side} tiles of ${this.about.tile_px} pixels at ${compact(this.about.mpp)} µm.`),
        el("p", null, "Weighed by ", el("strong", null, found.who), "."),
        this.weighed() ? el("p", null, "Most: ", el("button", { type: "button", onclick: () => this.go(best, null) }, named("region", found.regions[best])), ` with ${times(this.weights[best])}.`) : null,
        el("p", { class: "soft" }, "Click a region to see where it looks.")));
      return;
    }
    replace(this.aside, el("h2", null, named("Region", this.found.regions[this.region])), this.weighed() ? el("p", { class: "soft" }, `It counts ${times(this.weights[this.region])} in the slide.`) : null,
      this.look.unread ? el("p", { class: "note" }, `${percent(this.look.unread)} of this region cannot be read in ${this.slide.name}: it is striped.`) : null,
      el("p", { class: "soft" }, this.counted()), this.panel.node);
    replace(this.right, this.aside, this.tile === null ? null : this.inside.node);
  }

  counted() {
    const { side } = this.found, [row, column] = this.found.regions[this.region].map((one) => one * side);
    return `Tiles are counted over the whole slide, from 0: here are rows ${row} to ${row + side - 1}, columns ${column} to ${column + side - 1}.`;
  }

  drawMarks() {
    // The slide shows its regions.
    const marks = this.region === null ? this.found.regions.map((_, region) => ({ box: this.boxOf(region), thin: true })) : [];
    if (this.region !== null) marks.push({ box: this.boxOf(this.region) });
    if (this.tile !== null) marks.push({ box: this.boxOfTile(this.tile) });
    if (this.cursor !== null) marks.push({ box: this.region === null ? this.boxOf(this.cursor) : this.boxOfTile(this.cursor), inner: "#4fd1ff" });
    this.stage.show(this.stage.heat, marks);
  }

  // The heatmap of where one is: of the slide, or of the region as the class token or the marked tile sees it.
  async draw() {
    delete this.stage.node.dataset.level;
    const { found, about, region, tile } = this, { side } = found, still = this.drawings();
    let cells = about.cells, step = about.step_px, words;
    if (region === null) {
      if (this.map === "regions") [cells, step] = [found.regions, about.step_px.map((px) => px * side)];
      this.values = { regions: this.weights, tiles: this.tiles, composed: this.composed }[this.map];
      words = { regions: `How much each region counts in the slide, weighed by ${found.who}.`,
        tiles: "How much each region's class token takes from each of its tiles.",
        composed: "The weight of the region times its attention to the tile." }[this.map] + unreadableNote(found.unread.length, this.slide.name);
    } else {
      const rows = await this.look.rows("attention", this.layer, this.asking(), this.signal);
      if (!still()) return;
      this.values = this.shares(rows);
      const who = tile !== null && this.asks ? "the marked tile" : "the class token", head = this.head === "mean" ? "mean of all heads" : `head ${this.head}`;
      words = `Where ${who} looks within this region: layer ${this.layer} of 0 to ${found.depth - 1}, ${head}.`;
      this.drawPanel(rows, this.asking() === 0 ? null : this.asking() - this.look.prefix);
    }
    const limits = range(this.values.filter(Number.isFinite));
    this.stage.heat = heatmapOf(cells, step, this.values, limits.high > limits.low ? limits : { low: limits.low - 1, high: limits.high + 1 });
    this.drawMarks();
    replace(this.scale, el("span", null, compact(limits.low)), el("span", { class: "ramp" }), el("span", null, compact(limits.high)), el("span", null, "times an even share"));
    replace(this.words, words);
    replace(this.under);
    say(words);
    this.stage.node.dataset.level = region === null ? "slide" : tile === null ? "region" : "tile";
  }

  asking() {
    return this.tile !== null && this.asks ? this.look.prefix + this.placeOf(this.tile) : 0;
  }

  placeOf(tile) {
    const { side } = this.found, [row, column] = this.about.cells[tile];
    return (row % side) * side + (column % side);
  }

  // A place of the region as row and column of the slide's tiles: everywhere on this page they are counted so.
  cellAt(place) {
    const { side } = this.found, [row, column] = this.found.regions[this.region];
    return [row * side + Math.floor(place / side), column * side + (place % side)];
  }

  named(place) { return named("tile", this.cellAt(place)); }

  tileAtPlace(place) {
    return place === null || this.region === null ? undefined : this.atTile.get(this.cellAt(place).join("/"));
  }

  // Of every tile of the slide, NaN outside the region: what it gets of what goes to tiles, 1 is an even share.
  shares(rows) {
    const map = selectHead(rows, this.look.tokens, this.look.prefix, this.head), own = this.found.region_of;
    const total = map.reduce((sum, value) => sum + value, 0), count = own.filter((one) => one === this.region).length;
    return Float32Array.from(own, (one, tile) => (one === this.region ? (count * map[this.placeOf(tile)]) / total : NaN));
  }

  drawPanel(rows, place) {
    this.panel.draw(rows, "attention", { layer: this.layer, head: this.head, keep: 1, smooth: false, colour: false, place, pointed: null });
  }

  // A tile under the pointer in the small picture asks for as long as it is there.
  async point(place) {
    if (!this.look || this.region === null) return;
    const there = place !== null && this.look.has_tile[place], still = this.pointings(), look = this.look;
    const rows = await look.rows("attention", this.layer, there ? look.prefix + place : this.asking(), this.signal);
    if (still() && look === this.look) this.drawPanel(rows, there ? place : this.asking() === 0 ? null : this.asking() - look.prefix);
  }

  hover(x, y) {
    if (!this.found || !this.values) return;
    const { region, tile } = x === null ? {} : this.at(x, y);
    if (region === undefined) replace(this.under);
    else if (this.region === null && this.map === "regions") replace(this.under, "Under the pointer: ", this.regionWords(region));
    else if (tile !== undefined && Number.isFinite(this.values[tile])) replace(this.under, "Under the pointer: ", this.tileWords(tile));
    else replace(this.under);
  }

  regionWords(region) { return `${named("region", this.found.regions[region])}: ${times(this.weights[region])}`; }
  tileWords(tile) { return `${named("tile", this.about.cells[tile])}: ${times(this.values[tile])}, ${percent(this.shareOf(tile))}`; }

  // The share behind "times": of the region, or of all tiles in regions.
  shareOf(tile) {
    const of = this.found.region_of, count = this.region === null && this.map === "composed"
      ? of.filter((one) => one >= 0).length : of.filter((one) => one === of[tile]).length;
    return this.values[tile] / count;
  }
}
