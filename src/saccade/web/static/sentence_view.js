// Attention in a sentence: choose a query word, see its attention per layer and head.
//
// The numbers come from a source (a server, or data inside the page):
//   source.info                                     what sentences.facts says
//   source.layer(layer)          -> [H N N]         all heads of a layer, for up to WHOLE_TOKENS tokens
//   source.head(layer, head)     -> [N N]           one head, or "mean"
//   source.pair(layer, head, query, answer), source.lookUp(token), source.order(seed)
//                                                   numbers behind the picture; pair and order may be null; no head: the one in
//                                                   which the pair is strongest

import { el, field, replace, say, select } from "./dom.js";
import { csv, download } from "./files.js";
import { latest } from "./latest_request.js";
import { CanvasPainter, colours, SvgPainter } from "./painter.js";
import { apart, directionOf } from "./text_direction.js";
import {
  cellAt, drawHeads, drawLines, drawMatrix, headAt, largest, merge, part, percent, placeHeads, placeMatrix, layoutWords,
  shade, wordAt,
} from "./sentence_drawing.js";
import { SentenceNumbers } from "./sentence_numbers.js";

const WHOLE_TOKENS = 128;

export class SentenceView {
  constructor(root, signal) {
    this.signal = signal;
    this.state = { layer: 0, head: "mean", tokens: false, special: false, asks: -1, answers: -1, hover: -1 };
    this.next = {}; // selected, but not loaded yet: {source, layer, head, tokens, special}
    this.cache = new Map();
    this.loads = latest();
    this.lines = el("canvas", { tabindex: 0, role: "application", class: "sentence-lines inked" });
    this.matrix = el("canvas", { class: "sentence-matrix inked", "aria-hidden": "true" });
    this.heads = el("canvas", { class: "sentence-heads inked", "aria-hidden": "true" });
    this.found = el("div", { class: "sentence-found" });
    this.controls = el("div", { class: "row sentence-controls noprint" });
    this.title = el("p", { class: "sentence-title" });
    this.note = el("p", { class: "soft" });
    this.trouble = el("div", { class: "note", role: "alert", hidden: true });
    this.numbers = new SentenceNumbers(this);
    root.append(this.controls, this.trouble, this.title, el("div", { class: "sentence-wide" }, this.lines), this.note,
      el("div", { class: "sentence-two" },
        el("section", { class: "card" }, el("h2", null, "Attention matrix"),
          el("p", { class: "soft" }, "Rows are queries, columns are keys. A row sums to 100 % only together with its weights on special tokens such as [CLS] and [SEP]."), this.matrix),
        el("section", { class: "card" }, this.headsTitle = el("h2", null, "Heads"), this.heads, this.found)),
      this.numbers.root);
    this.listen();
  }

  // --- what is shown ---------------------------------------------------------------------------------

  async open(source) {
    const { info } = source, { layer, head } = this.chosen;
    const kept = (info.layers ?? [layer]).includes(layer) ? layer : info.layers[0];
    Object.assign(this.next, { source, layer: Math.min(kept, info.depth - 1), head: head !== "mean" && head >= info.heads ? "mean" : head });
    this.makeControls();
    await this.load();
  }

  // The values of the controls: the state and later selections.
  get chosen() { return { source: this.source, ...this.state, ...this.next }; }

  // Which way the text runs: by its first letter.
  get direction() { return directionOf(this.source.info.text) ?? "ltr"; }

  units() {
    const { info } = this.source;
    if (!this.state.tokens) return info.words;
    return info.tokens.map((token, i) => ({ text: token.unknown ? token.text : token.piece, first: i, last: i, special: token.special }));
  }

  firstShown(word) {
    const units = this.units();
    const named = units.findIndex((unit) => unit.text.toLowerCase() === word?.toLowerCase());
    return named >= 0 ? named : units.findIndex((unit) => !unit.special);
  }

  // Everything that depends on text, layer, head and unit; the word that asks only changes what is drawn. What was chosen
  // becomes the state when its numbers are there, so what is painted, told and saved is of one layer. Throws what the source does.
  async load() {
    const still = this.loads(), { source, layer, head } = this.chosen, count = source.info.tokens.length;
    let weights, all;
    try {
      weights = await this.weights(source, layer, head);
      all = count <= WHOLE_TOKENS ? await this.kept(source, `layer ${layer}`, () => source.layer(layer)) : null;
    } catch (error) {
      if (!still()) return;
      this.next = {};
      if (this.source) this.makeControls(); else replace(this.controls);
      throw error;
    }
    if (!still() || this.signal.aborted) return;
    this.trouble.hidden = true;
    const opened = this.settle();
    this.show(weights, all);
    if (opened) this.numbers.opened(); else this.numbers.chosen();
  }

  // What was chosen is the state from now on; the word that asks stays, as far as it is there. Whether another text was opened.
  settle() {
    const { state, next: { source, ...next } } = this, before = this.source && this.units()[state.asks];
    const others = "tokens" in next && next.tokens !== state.tokens;
    this.next = {};
    Object.assign(state, next);
    if (source) {
      this.source = source;
      state.asks = this.units()[state.first] ? state.first : this.firstShown(state.wanted);
      state.wanted = state.first = undefined;
    } else if (others) state.asks = Math.max(0, this.units().findIndex((unit) => unit.first <= before.first && before.first <= unit.last));
    if (source || others) state.answers = state.hover = -1;
    return Boolean(source);
  }

  // weights [N N] of what is shown; all [H N N], or null where there are too many tokens.
  show(weights, all) {
    const { state, source } = this, units = this.units(), count = source.info.tokens.length;
    this.whole = state.tokens ? weights : merge(weights, count, units);
    this.shown = units.map((_, i) => i).filter((i) => state.special || !units[i].special || i === state.asks);
    this.names = this.shown.map((i) => units[i].text);
    const values = part(this.whole, units.length, this.shown);
    this.most = largest(values);
    this.values = values;
    this.byHead = all && [...Array(source.info.heads).keys()].map((h) => {
      const one = all.subarray(h * count * count, (h + 1) * count * count);
      return part(state.tokens ? one : merge(one, count, units), units.length, this.shown);
    });
    this.paintShades();
    this.place();
    this.paint();
    this.tell();
  }

  async weights(source, layer, head) {
    const count = source.info.tokens.length;
    if (count > WHOLE_TOKENS) return this.kept(source, `head ${layer} ${head}`, () => source.head(layer, head));
    const all = await this.kept(source, `layer ${layer}`, () => source.layer(layer));
    if (head !== "mean") return all.subarray(head * count * count, (head + 1) * count * count);
    const heads = all.length / count ** 2, mean = new Float32Array(count * count);
    for (let i = 0; i < all.length; i++) mean[i % mean.length] += all[i] / heads;
    return mean;
  }

  // Answers of one source by question; the latest two dozen.
  async kept(source, key, ask) {
    if (this.cached !== source) this.cache.clear();
    this.cached = source;
    if (!this.cache.has(key)) {
      const answer = ask();
      this.cache.set(key, answer);
      answer.catch(() => this.cache.delete(key));
      if (this.cache.size > 24) this.cache.delete(this.cache.keys().next().value);
    }
    return this.cache.get(key);
  }

  row(asks) {
    const size = this.units().length;
    return new Float32Array(this.shown.map((i) => this.whole[asks * size + i]));
  }

  // --- drawing ---------------------------------------------------------------------------------------

  paintShades() {
    const ink = colours();
    this.shades = shade(this.values, this.shown.length, ink, this.direction, this.most);
    this.headShades = this.byHead?.map((values) => shade(values, this.shown.length, ink, this.direction));
  }

  place() {
    const wide = (node) => Math.max(220, Math.floor(node.parentElement.clientWidth - padding(node.parentElement)));
    this.linesAt = { wide: wide(this.lines), ...layoutWords(this.names, wide(this.lines), this.direction) };
    const room = wide(this.matrix);
    this.matrixAt = { wide: room, ...placeMatrix(this.names, Math.min(room, 640), this.direction) };
    this.headsAt = this.headShades ? { wide: wide(this.heads), ...placeHeads(this.headShades.length, wide(this.heads)) } : null;
    this.headsTitle.hidden = this.heads.hidden = !this.headsAt;
  }

  draw() {
    const { state } = this, asks = state.hover >= 0 ? state.hover : state.asks;
    return { colours: colours(), asks: this.shown.indexOf(asks), answers: this.shown.indexOf(state.answers), asking: asks };
  }

  drawLines(painter) {
    const now = this.draw();
    drawLines(painter, this.linesAt, this.names, this.row(now.asking), now);
  }

  drawMatrix(painter) {
    drawMatrix(painter, this.matrixAt, this.names, this.shades, this.most, this.draw());
  }

  paint() {
    const began = performance.now();
    this.drawLines(new CanvasPainter(this.lines, this.linesAt.wide, this.linesAt.tall));
    this.drawMatrix(new CanvasPainter(this.matrix, this.matrixAt.wide, this.matrixAt.tall));
    if (this.headsAt) {
      drawHeads(new CanvasPainter(this.heads, this.headsAt.wide, this.headsAt.tall), this.headsAt, this.headShades,
        { chosen: this.state.head, colours: colours() });
    }
    this.lines.dataset.paintMs = (performance.now() - began).toFixed(1);
  }

  soon() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; if (this.whole) this.paint(); });
  }

  // The strongest weights as text, also for people who cannot see the canvas.
  tell() {
    const { state } = this, units = this.units(), row = this.row(state.asks), { info } = this.source;
    const asks = apart(units[state.asks].text), head = state.head === "mean" ? `mean of ${info.heads} heads` : `head ${state.head}`;
    replace(this.title, el("strong", null, `“${asks}” asks`), ` · ${info.model}, layer ${state.layer} of 0 to ${info.depth - 1}, ${head}`);
    const unseen = 1 - row.reduce((sum, share) => sum + share, 0);
    const left = [...new Set(units.filter((u, i) => !this.shown.includes(i)).map((u) => u.text))].join(" and ");
    const notes = [left ? `${percent(unseen)} goes to ${left}, not drawn.` : "", this.cut(), this.source.note ?? "",
      info.positions === "constant" ? "Without positions: the model is independent of word order." : "",
      info.causal ? "This model masks later words." : ""];
    this.note.textContent = notes.filter(Boolean).join(" ");
    const best = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 8);
    replace(this.found, el("h2", null, `“${asks}” looks most at`), el("ol", { class: "sentence-best" }, best.map((i) =>
      el("li", null, el("button", { type: "button", class: "quiet", onclick: () => this.answer(this.shown[i]) },
        el("span", { dir: "auto" }, this.names[i], " ", el("small", null, this.shown[i])), el("span", { class: "bar", style: { width: `${100 * row[i] / Math.max(row[best[0]], 1e-9)}%` } }),
        el("span", { class: "number" }, percent(row[i])))))));
    this.lines.setAttribute("aria-label", `${asks} looks at ${best.slice(0, 5).map((i) => `${this.names[i]} ${percent(row[i])}`).join(", ")}. ` +
      "Arrow left and right: another word asks. Arrow up and down: another word answers.");
  }

  cut() {
    const { info } = this.source;
    return info.left_out ? `The model takes ${info.tokens.length} tokens: the last ${info.left_out} words were left out.` : "";
  }

  // --- choosing --------------------------------------------------------------------------------------

  ask(unit) {
    if (unit < 0 || unit === this.state.asks) return;
    const hidden = !this.shown.includes(this.state.asks) || this.units()[this.state.asks].special;
    this.state.asks = unit;
    if (hidden) { this.change({}); return; }
    this.soon();
    this.tell();
    this.numbers.chosen();
    say(this.lines.getAttribute("aria-label"));
  }

  answer(unit) {
    this.state.answers = unit;
    this.soon();
    this.numbers.chosen();
  }

  change(values) {
    Object.assign(this.next, values);
    this.makeControls();
    return this.load().catch((error) => {
      if (this.signal.aborted) return;
      this.trouble.hidden = false;
      replace(this.trouble, error.message);
    });
  }

  makeControls() {
    const state = this.chosen, { info } = state.source;
    const layers = info.layers ?? [...Array(info.depth).keys()];
    const layer = el("input", { type: "range", min: 0, max: layers.length - 1, step: 1, value: layers.indexOf(state.layer),
      oninput: () => this.change({ layer: layers[Number(layer.value)] }), "aria-valuetext": `layer ${state.layer}` });
    const heads = [{ value: "mean", text: `mean of ${info.heads}` }, ...[...Array(info.heads).keys()].map((h) => ({ value: String(h), text: `head ${h}` }))];
    const had = this.controls.contains(document.activeElement) ? document.activeElement.dataset?.name : null;
    layer.dataset.name = "layer";
    const head = select(heads, String(state.head), (value) => this.change({ head: value === "mean" ? "mean" : Number(value) }));
    head.dataset.name = "head";
    replace(this.controls,
      field(`Layer ${state.layer} of 0 to ${info.depth - 1}`, layer), field("Head", head),
      tick("Tokens instead of words", "tokens", state.tokens, (tokens) => this.change({ tokens })),
      tick(`Draw ${[...new Set(info.words.filter((w) => w.special).map((w) => w.text))].join(", ") || "special tokens"}`, "special", state.special, (special) => this.change({ special })),
      el("div", { class: "group", role: "group", "aria-label": "Save what is shown" },
        ["SVG", "PNG", "CSV"].map((kind) => el("button", { type: "button", onclick: () => this.save(kind) }, kind))));
    this.controls.querySelector(`[data-name="${had}"]`)?.focus();
  }

  listen() {
    const options = { signal: this.signal };
    const on = (node, kind, act) => node.addEventListener(kind, act, options);
    on(this.lines, "pointermove", (event) => this.hover(wordAt(this.linesAt, event.offsetX, event.offsetY)));
    on(this.lines, "pointerleave", () => this.hover(-1));
    on(this.lines, "click", (event) => {
      const i = wordAt(this.linesAt, event.offsetX, event.offsetY);
      if (i >= 0) event.shiftKey ? this.answer(this.shown[i]) : this.ask(this.shown[i]);
    });
    on(this.matrix, "click", (event) => {
      const cell = cellAt(this.matrixAt, event.offsetX, event.offsetY);
      if (cell) { this.state.answers = this.shown[cell.column]; this.ask(this.shown[cell.row]); this.answer(this.shown[cell.column]); }
    });
    on(this.matrix, "pointermove", (event) => this.point(cellAt(this.matrixAt, event.offsetX, event.offsetY)));
    on(this.heads, "click", (event) => {
      const head = headAt(this.headsAt, event.offsetX, event.offsetY);
      if (head >= 0) this.change({ head: head === this.state.head ? "mean" : head });
    });
    on(this.lines, "keydown", (event) => this.key(event));
    on(document, "theme", () => { if (this.whole) { this.paintShades(); this.paint(); this.numbers.chosen(); } });
    const watch = new ResizeObserver(() => { if (this.whole) { this.place(); this.soon(); } });
    watch.observe(this.lines.parentElement);
    this.signal.addEventListener("abort", () => watch.disconnect());
  }

  hover(i) {
    const unit = i < 0 || !this.shown ? -1 : this.shown[i];
    if (unit === this.state.hover) return;
    this.state.hover = unit;
    this.soon();
  }

  point(cell) {
    const share = cell && this.values[cell.row * this.shown.length + cell.column];
    this.matrix.title = cell ? `${apart(this.names[cell.row])} looks at ${apart(this.names[cell.column])}: ${percent(share)}` : "";
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.state.hover = -1;
    const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
    const at = this.shown.indexOf(sideways ? this.state.asks : this.state.answers);
    const on = sideways && this.direction === "rtl" ? -step : step; // the next word is on the left there
    const next = this.shown[(at + on + this.shown.length) % this.shown.length];
    if (sideways) { this.ask(next); return; }
    this.answer(next);
    say(`${this.units()[this.state.asks].text} looks at ${this.units()[next].text}: ${percent(this.row(this.state.asks)[this.shown.indexOf(next)])}`);
  }

  // --- files ---------------------------------------------------------------------------------------

  save(kind) {
    const { info } = this.source, { state } = this;
    const name = `attention-layer${state.layer}-${state.head === "mean" ? "mean" : `head${state.head}`}`;
    if (kind === "CSV") { download(csv(this.rows()), `${name}.csv`, "text/csv"); return; }
    const { wide, tall } = this.linesAt, below = this.matrixAt, ground = colours();
    const size = [Math.max(wide, below.wide) + 32, tall + below.tall + 84];
    const painted = (painter) => {
      painter.text(16, 30, `${this.title.textContent}`, ground.ink, { size: 14, bold: true });
      painter.text(16, 50, this.note.textContent, ground.soft, { size: 12 });
      this.drawLines(new ShiftedPainter(painter, 16, 56));
      this.drawMatrix(new ShiftedPainter(painter, 16, 68 + tall));
    };
    if (kind === "SVG") {
      const painter = new SvgPainter(...size, ground.page, `${this.title.textContent}: ${info.text}`);
      painted(painter);
      download(painter.toString(), `${name}.svg`, "image/svg+xml");
      return;
    }
    const canvas = document.createElement("canvas"), painter = new CanvasPainter(canvas, ...size, 3);
    painter.rect(0, 0, ...size, ground.page);
    painted(painter);
    canvas.toBlob((blob) => download(blob, `${name}.png`), "image/png");
  }

  // The matrix that is on the page, special tokens included, with the words' numbers.
  rows() {
    const units = this.units(), found = [["layer", "head", "query", "key", "query_word", "key_word", "weight"]];
    units.forEach((asks, i) => units.forEach((answers, j) =>
      found.push([this.state.layer, String(this.state.head), i, j, asks.text, answers.text, this.whole[i * units.length + j]])));
    return found;
  }
}

// The same painter, with another origin.
class ShiftedPainter {
  constructor(painter, x, y) { Object.assign(this, { painter, x, y }); }
  rect(x, y, ...rest) { this.painter.rect(x + this.x, y + this.y, ...rest); }
  text(x, y, ...rest) { this.painter.text(x + this.x, y + this.y, ...rest); }
  cells(x, y, ...rest) { this.painter.cells(x + this.x, y + this.y, ...rest); }
  curve(points, ...rest) { this.painter.curve(points.map(([x, y]) => [x + this.x, y + this.y]), ...rest); }
}

function tick(label, name, checked, change) {
  const box = el("input", { type: "checkbox", checked, "data-name": name, onchange: () => change(box.checked) });
  return el("label", { class: "tick" }, box, ` ${label}`);
}

function padding(node) {
  const style = getComputedStyle(node);
  return parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
}
