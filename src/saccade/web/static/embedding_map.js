// The map of embeddings: images with similar feature vectors are close.

import { floats, json, link, post } from "./server_api.js";
import { legend, looks, named, NAMED } from "./embedding_map_legend.js";
import { Neighbours } from "./embedding_map_neighbours.js";
import { MapPlot } from "./embedding_map_plot.js";
import { drawing, picture } from "./embedding_map_save.js";
import { csv, download } from "./files.js";
import { el, field, replace, say, select } from "./dom.js";
import { latest } from "./latest_request.js";
import { showLoading, loadingText } from "./loading.js";

const KINDS = { pca: "PCA", tsne: "t-SNE", umap: "UMAP" };
const GONE = "is no longer there: its folder was moved or deleted.";
const LISTED = 48, POLL = 400;

export async function show(root, context) {
  const { signal, query } = context;
  showLoading(root, "Map", "Loading feature tables.");
  const tables = await json("map", {}, signal);
  replace(root, el("h1", null, "Map"));
  const ready = tables.filter((table) => table.id);
  const page = el("div");
  if (ready.length) {
    const first = ready.find((table) => table.id === query.get("table")) ?? ready.find((table) => table.run && table.run === query.get("run")) ?? ready[0];
    const open = async (id) => {
      const table = ready.find((one) => one.id === id);
      replace(page, loadingText(`Reading ${table.name} and working out its map.`));
      const about = await json(`map/${id}`, {}, signal);
      await new EmbeddingMap(page, signal, table, about, query).start();
    };
    if (ready.length > 1) {
      root.append(el("div", { class: "row" }, field("Table", select(ready.map((one) => ({ value: one.id, text: one.name })), first.id,
        (id) => context.go("map", { table: id })))));
    }
    root.append(page);
    await open(first.id);
  }
  const without = tables.filter((table) => table.command || table.gone);
  if (without.length) root.append(missing(without, ready.length > 0, context));
  if (!tables.length) root.append(el("p", null, "No feature table yet. ", el("code", null, "saccade embed MODEL DATA --out FILE.parquet"), " makes one; ", el("code", null, "saccade view --store FILE.parquet"), " shows it."));
}

function missing(tables, some, context) {
  const rows = tables.map((table) => el("li", null, el("strong", null, table.name), table.gone ? [" ", GONE] : [maker(table, context),
    el("div", { class: "command" }, el("code", null, table.command), el("button", { type: "button", onclick: async (event) => {
      try { await navigator.clipboard.writeText(table.command); event.target.textContent = "Copied"; } catch { getSelection().selectAllChildren(event.target.previousSibling); }
    } }, "Copy"))]));
  return el("section", { class: "noprint" }, el("h2", null, some ? "Other runs" : "Runs without a feature table"),
    el("p", null, "A map shows one vector an image. Compute them here, or with the command; they are kept in the folder of the run."), el("ul", { class: "commands" }, rows));
}

// The button that computes the vectors of a run, then its progress, also after the page is reopened.
function maker(table, context) {
  const place = el("div", { class: "job", role: "status" }), asked = `map/embed/${table.run}`;
  const begin = el("button", { type: "button", onclick: async () => {
    begin.disabled = true;
    try { await post(asked, {}, context.signal); await followed(); } catch (error) { stopped(error.message); }
  } }, "Compute now");
  const stopped = (text) => { begin.disabled = false; if (!context.signal.aborted) replace(place, begin, text ? el("span", { class: "note", role: "alert" }, text) : null); };
  const followed = async () => {
    const stop = el("button", { type: "button", onclick: () => post(`${asked}/stop`, {}, context.signal) }, "Stop");
    const state = await follow(place, el("strong", null, "Computing features"), stop, () => json(asked, {}, context.signal));
    if (state.state === "done") context.go("map", { run: table.run });
    else stopped(state.state === "failed" ? state.text : "");
  };
  replace(place, begin);
  json(asked, {}, context.signal).then((state) => state.state === "running" && followed(), () => null);
  return place;
}

// Shows the progress of a job in `place` until it ends; returns its final state.
async function follow(place, name, stop, ask) {
  const bar = el("progress", { max: 1, value: 0 }), text = el("span");
  replace(place, name, bar, text, stop);
  for (;;) {
    const state = await ask();
    if (state.state !== "running") return state;
    if (state.share > 0) bar.value = state.share; else bar.removeAttribute("value");
    replace(text, `${state.text}, ${Math.round(state.seconds)} s`);
    await new Promise((resolve) => setTimeout(resolve, POLL));
  }
}

class EmbeddingMap {
  constructor(root, signal, table, about, query) {
    Object.assign(this, { root, signal, name: table.name, table: table.id, about });
    this.kind = "pca";
    this.column = ["label", "group", "split", ...about.columns].find((name) => about.columns.includes(name)) ?? about.cluster;
    if (about.columns.includes(query.get("colour"))) this.column = query.get("colour");
    this.most = Math.min(50, about.shown);
    this.clusters = Math.min(8, this.most);
    this.hidden = new Set();
    this.values = [];
    this.known_ = new Map();
    this.selected = [];
    Object.assign(this, { wishes: latest(), colourings: latest() });
    this.pictures = !about.pictures;
  }

  async start() {
    const { about, signal, table } = this;
    this.plot = new MapPlot(signal, { hover: (i) => this.hover(i), pick: (i) => this.pick(i), lasso: (rows) => this.choose(rows), card: (i) => this.card(i) });
    const groups = about.columns.includes("group") ? await json(`map/${table}/values`, { name: "group" }, signal) : [];
    this.grouped = groups.some((name) => name !== "");
    this.near = new Neighbours(this);
    this.legend = el("div");
    this.selection = el("section", { class: "card", "aria-label": "Selection" });
    this.job = el("div", { class: "job", role: "status", hidden: true });
    this.fault = el("div");
    this.words = el("p", { class: "soft words" }, loadingText("Placing the points."));
    const side = el("div", { class: "map-side" },
      el("section", { class: "card", "aria-label": "Legend" }, el("h2", null, "Legend"), this.legend), this.near.node, this.selection);
    replace(this.root, this.tools(), this.fault, this.job, el("div", { class: "map-grid" }, el("div", null, this.plot.node, this.words), side));
    if (about.pictures) this.root.append(el("p", { class: "note" }, `The images of the table cannot be shown: ${about.pictures}.`));
    await this.setKind("pca");
    await this.setColumn(this.column);
    document.addEventListener("theme", () => this.repaint(), { signal });
  }

  tools() {
    const { about } = this;
    this.kinds = el("div", { class: "group", role: "group", "aria-label": "Kind of map" }, about.kinds.map(({ kind, missing }) =>
      el("button", { type: "button", "data-kind": kind, "aria-pressed": String(kind === this.kind), title: missing ?? "", onclick: () => this.want(kind, missing) }, KINDS[kind])));
    const colours = [...about.columns, about.cluster].map((name) => ({ value: name, text: name }));
    this.count = el("input", { type: "number", min: 2, max: this.most, value: this.clusters, style: { width: "5rem" }, onchange: () => {
      this.clusters = Math.max(2, Math.min(this.most, Math.round(Number(this.count.value)) || 8));
      this.count.value = this.clusters;
      this.setColumn(about.cluster);
    } });
    this.countField = field("Clusters", this.count);
    const modes = ["move", "lasso"].map((mode) => el("button", { type: "button", "data-mode": mode, "aria-pressed": String(mode === "move"), onclick: () => {
      this.plot.mode = mode;
      for (const node of modes) node.setAttribute("aria-pressed", String(node.dataset.mode === mode));
      this.plot.above.classList.toggle("lasso", mode === "lasso");
    } }, mode === "move" ? "Move" : "Lasso"));
    const zooms = [["−", "Smaller", () => this.plot.zoom(1 / 1.4)], ["+", "Larger", () => this.plot.zoom(1.4)], ["All", "Show all", () => this.plot.fit()]];
    const part = (label, node) => el("div", { class: "field" }, el("span", { class: "label" }, label), node);
    return el("div", { class: "row tools-row noprint" },
      part("Map", this.kinds), field("Colour and shape by", select(colours, this.column, (name) => this.setColumn(name))), this.countField,
      part("Drag to", el("div", { class: "group", role: "group", "aria-label": "What dragging does" }, modes)),
      part("Zoom", el("div", { class: "group" }, zooms.map(([text, label, act]) => el("button", { type: "button", "aria-label": label, onclick: act }, text)))),
      el("button", { type: "button", onclick: () => this.choose(this.visible()) }, "Select visible"),
      part("Save", el("div", { class: "group" }, ["png", "svg", "csv"].map((kind) => el("button", { type: "button", "data-save": kind, onclick: () => this.save(kind) }, kind.toUpperCase())))));
  }

  complain(error) {
    if (this.signal.aborted) return;
    const said = error.said ?? {};
    replace(this.fault, el("p", { class: "note", role: "alert" }, [error.message, said.got, said.expected, said.hint].filter(Boolean).join(" · ")));
  }

  // --- the kind of map ----------------------------------------------------------------------------

  async want(kind, missing) {
    if (missing) { this.complain({ message: missing }); return; }
    replace(this.fault);
    try {
      const state = kind === "pca" ? { state: "done" } : await json(`map/${this.table}/job`, { kind }, this.signal);
      if (state.state === "done") {
        this.wanted = kind;
        await this.setKind(kind);
        return;
      }
      // While another map is computed this is refused, and the page keeps waiting for that one.
      await post(`map/${this.table}/job`, { kind }, this.signal);
      this.wanted = kind;
      if (this.following !== kind) await this.follow(kind);
    } catch (error) { this.complain(error); }
  }

  async follow(kind) {
    const stop = el("button", { type: "button", onclick: () => post(`map/${this.table}/cancel`, { kind }, this.signal) }, "Cancel");
    this.job.hidden = false;
    this.following = kind;
    const state = await follow(this.job, el("strong", null, `${KINDS[kind]} is being made`), stop, () => json(`map/${this.table}/job`, { kind }, this.signal));
    this.job.hidden = true;
    this.following = null;
    if (state.state === "done" && this.wanted !== kind) say(`${KINDS[kind]} is ready`);
    else if (state.state === "done") await this.setKind(kind);
    else if (state.state === "failed") throw new Error(`${KINDS[kind]} failed: ${state.text}`);
    else say(`${KINDS[kind]} cancelled`);
  }

  async setKind(kind) {
    const still = this.wishes();
    const places = await floats(`map/${this.table}/places`, { kind }, this.signal);
    if (!still()) return;
    this.kind = kind;
    for (const node of this.kinds.children) node.setAttribute("aria-pressed", String(node.dataset.kind === kind));
    this.plot.scatter.setPlaces(places);
    this.repaint();
    const { shown, rows, unit, model, kinds } = this.about, [first, second] = kinds[0].shares.map((share) => `${(100 * share).toFixed(1)} %`);
    const means = kind === "pca" ? `PCA: across ${first}, up ${second} of the variance` : `${KINDS[kind]}: near points are similar; distances between far points are not meaningful`;
    this.foot = `${shown < rows ? `${shown.toLocaleString("en")} of ${rows.toLocaleString("en")}` : rows.toLocaleString("en")} ${unit}, ${model}. ${means}.`;
    replace(this.words, this.foot);
  }

  // --- colours and shapes --------------------------------------------------------------------------

  // The values of a column, and which of them each row has.
  read(name) {
    if (name === this.about.cluster && this.most < 2) return [["all"], new Float32Array(this.most)]; // one cluster
    const asked = { name, clusters: name === this.about.cluster ? this.clusters : null };
    return Promise.all([json(`map/${this.table}/values`, asked, this.signal), floats(`map/${this.table}/codes`, asked, this.signal)]);
  }

  async setColumn(name) {
    const still = this.colourings();
    try {
      this.countField.hidden = name !== this.about.cluster || this.most < 2;
      const [values, codes] = await this.read(name);
      if (!still()) return;
      Object.assign(this, { column: name, values });
      this.codes = Uint32Array.from(codes);
      this.counts = new Array(this.values.length).fill(0);
      for (const code of this.codes) this.counts[code]++;
      this.hidden.clear();
      this.repaint();
      this.choose(this.selected);
    } catch (error) { this.complain(error); }
  }

  look(i) { return Math.min(this.codes[i], NAMED); }

  repaint() {
    const { scatter } = this.plot;
    if (!this.codes || this.codes.length !== scatter.count) return;
    scatter.looks = looks(this.values.length);
    for (let i = 0; i < scatter.count; i++) {
      scatter.codes[i] = this.look(i);
      scatter.hidden[i] = this.hidden.has(scatter.codes[i]) ? 1 : 0;
    }
    replace(this.legend, legend({ values: this.values, counts: this.counts, hidden: this.hidden, change: (look, how) => this.change(look, how) }));
    this.plot.redraw();
  }

  change(look, how) {
    const all = looks(this.values.length).map((_, n) => n), others = all.filter((n) => n !== look);
    const alone = others.every((n) => this.hidden.has(n)) && !this.hidden.has(look);
    if (how === "only") this.hidden = new Set(alone ? [] : others);
    else if (this.hidden.has(look)) this.hidden.delete(look);
    else this.hidden.add(look);
    const entry = [...this.legend.querySelectorAll(how === "only" ? ".only" : ".entry")].indexOf(document.activeElement);
    this.repaint();
    if (entry >= 0) this.legend.querySelectorAll(how === "only" ? ".only" : ".entry")[entry].focus();
  }

  // --- points -----------------------------------------------------------------------------------------

  // Descriptions of rows, requested once.
  async known(rows) {
    const missing = rows.filter((row) => !this.known_.has(row));
    if (missing.length) {
      for (const one of await post(`map/${this.table}/rows`, { numbers: missing }, this.signal)) this.known_.set(one.row, one);
    }
    return rows.map((row) => this.known_.get(row));
  }

  card(i) {
    const known = this.known_.get(i);
    const words = [[this.column, named(this.values[this.codes[i]] ?? "")]];
    for (const name of ["label", "group", "split"]) if (known?.[name] && name !== this.column) words.push([name, known[name]]);
    return [this.pictures ? el("img", { src: link(`map/${this.table}/thumb/${i}`, { side: 128, written: this.about.written }), alt: "", width: 112, height: 112 }) : null,
      el("div", null, words.map(([name, value]) => el("div", null, el("span", { class: "soft" }, `${name} `), value)), known ? el("small", null, known.id) : null)];
  }

  hover(i) {
    if (i < 0 || this.known_.has(i)) return;
    clearTimeout(this.asking);
    this.asking = setTimeout(async () => {
      try { await this.known([i]); } catch { return; }
      if (this.plot.hovered === i) this.plot.hover(i, document.activeElement === this.plot.above);
    }, 60);
  }

  pick(i) { this.near.ask({ row: i }); }

  go(row) {
    if (row >= this.plot.scatter.count) { say("This image is not on the map"); return; }
    this.plot.reveal(row);
    this.pick(row);
  }

  point(row) {
    this.plot.hovered = row < this.plot.scatter.count ? row : -1;
    this.plot.mark();
  }

  marked(row, rows) { this.plot.pick(row, rows.filter((one) => one < this.plot.scatter.count)); }

  // --- selection --------------------------------------------------------------------------------------

  visible() {
    const { scatter } = this.plot;
    return Array.from({ length: scatter.count }, (_, i) => i).filter((i) => scatter.inView(i));
  }

  choose(rows) {
    const { scatter } = this.plot;
    this.selected = rows;
    scatter.chosen = rows.length ? new Uint8Array(scatter.count) : null;
    for (const row of rows) scatter.chosen[row] = 1;
    this.plot.redraw();
    if (!rows.length) {
      replace(this.selection, el("h2", null, "Selection"), el("p", { class: "soft" }, "Draw around points with the lasso, or hold Shift and drag."));
      return;
    }
    const counts = new Map();
    for (const row of rows) counts.set(this.codes[row], (counts.get(this.codes[row]) ?? 0) + 1);
    const lines = [...counts].sort((a, b) => b[1] - a[1]);
    const some = rows.slice(0, LISTED);
    replace(this.selection, el("h2", null, `Selection: ${rows.length.toLocaleString("en")}`),
      el("table", null, el("thead", null, el("tr", null, el("th", null, this.column), el("th", { class: "number" }, this.about.unit), el("th", { class: "number" }, "of all"))),
        el("tbody", null, lines.slice(0, 12).map(([code, count]) => el("tr", null, el("td", null, named(this.values[code])),
          el("td", { class: "number" }, count.toLocaleString("en")), el("td", { class: "number" }, `${((100 * count) / this.counts[code]).toFixed(0)} %`))))),
      lines.length > 12 ? el("small", null, `and ${lines.length - 12} more`) : null,
      el("div", { class: "row noprint" }, el("button", { type: "button", onclick: () => this.saveRows(rows, "selection") }, "Save the list (CSV)"),
        el("button", { type: "button", onclick: () => this.choose([]) }, "Clear")),
      el("div", { class: "chosen" }, some.map((row) => el("button", { type: "button", "aria-label": `Image ${row}`, onclick: () => this.go(row),
        onmouseenter: () => this.point(row), onmouseleave: () => this.point(-1) }, this.near.thumb(row, 56)))),
      rows.length > LISTED ? el("small", null, `The first ${LISTED} are shown.`) : null);
    say(`${rows.length} ${this.about.unit} selected`);
  }

  // --- files ------------------------------------------------------------------------------------------

  async save(kind) {
    try {
      const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
      const file = `${this.name.replace(/[^A-Za-z0-9._-]+/g, "-")}-${this.kind}`;
      if (kind === "csv") { await this.saveRows(this.visible(), this.kind); return; }
      const shown = { scatter: this.plot.scatter, title: `${this.name}: ${KINDS[this.kind]} by ${this.column}`, foot: this.foot,
        ground: token("--card"), ink: token("--ink"), soft: token("--soft"),
        legend: looks(this.values.length).map((look, n) => ({ look, n, text: n === NAMED ? `${this.values.length - NAMED} others` : `${named(this.values[n])} (${this.counts[n]})` }))
          .filter(({ n }) => !this.hidden.has(n)) };
      if (kind === "svg") download(drawing(shown), `${file}.svg`, "image/svg+xml");
      else download(await picture(shown), `${file}.png`);
    } catch (error) { this.complain(error); }
  }

  async saveRows(rows, word) {
    const { cluster } = this.about, names = ["id", ...this.about.columns, ...(this.column === cluster ? [cluster] : [])], columns = {};
    for (const name of names) {
      const [values, codes] = await this.read(name);
      columns[name] = (row) => values[codes[row]];
    }
    const { places, chosen } = this.plot.scatter;
    const free = (name) => (names.includes(name) ? free(`${name}_`) : name); // the table's own columns stay
    columns[free("map_x")] = (row) => places[2 * row].toPrecision(6);
    columns[free("map_y")] = (row) => places[2 * row + 1].toPrecision(6);
    columns[free("map_selected")] = (row) => (chosen?.[row] ? 1 : 0);
    const lines = rows.map((row) => Object.values(columns).map((value) => value(row)));
    download(csv([Object.keys(columns), ...lines]), `${this.name.replace(/[^A-Za-z0-9._-]+/g, "-")}-${word}.csv`, "text/csv");
  }
}

