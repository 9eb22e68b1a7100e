// The attention explorer: the attention map of one patch, by model, layer and head.

import { json, live } from "./server_api.js";
import { addressOf, firstImage } from "./page_address.js";
import { chooser } from "./image_chooser.js";
import { difference } from "./map_difference.js";
import { el, field, redraw, replace, say, select } from "./dom.js";
import { selectHead, ModelView } from "./model_view.js";
import { range, sharedLimits, where } from "./patch_maps.js";
import { latest } from "./latest_request.js";
import { explain, explainNothing } from "./query_key_value.js";
import { Overview, Panel } from "./map_panel.js";
import { saver } from "./save_map.js";
import { showLoading, loadingText } from "./loading.js";

const SEED = 1, HEADING = "Attention explorer";
const rolls = (look) => look.wholeDepth === look.depth; // a single-file page may hold some layers only
const planar = ({ axes }) => (axes ?? 2) === 2; // neither volumes nor grids of vectors
const HELP = [["arrow keys", "move the asking patch"], ["C", "the class token asks"], ["[ ]", "layer before, after"],
  [", .", "head before, after"], ["M", "mean of the heads"], ["R", "rollout on, off"], ["Shift + arrows", "move the answering patch"]];

export async function show(root, context) {
  const { signal, query } = context;
  showLoading(root, HEADING, "Loading models and runs.");
  const [allModels, allRuns] = await Promise.all([json("attention/models", {}, signal), json("runs", {}, signal)]);
  const [models, runs] = [allModels.filter(planar), allRuns.filter(planar)];
  const page = new Explorer(root, context, models);
  const first = await firstImage(query, runs, signal);
  const images = chooser(context, runs, first, (image) => page.setImage(image));
  page.build(images.node);
  const image = await images.start();
  if (first.lost) page.complain(first.lost);
  else if (image) await page.setImage({ ...image, run: first.run ?? runs[0]?.id, start: first.start ?? 0 });
  images.node.querySelector(`[data-id="${image?.id}"]`)?.setAttribute("aria-selected", "true");
}

class Explorer {
  constructor(root, context, models) {
    Object.assign(this, { root, signal: context.signal, models });
    const words = context.query;
    const known = (id, other) => (models.some((model) => model.id === id) ? id : other);
    this.sides = [
      { model: known(words.get("a"), models[0]?.id), shuffle: words.has("as"), positions: !words.has("ap") },
      { model: known(words.get("b"), ""), shuffle: words.has("bs"), positions: !words.has("bp") },
    ];
    this.layer = words.has("layer") ? Number(words.get("layer")) : null;
    this.head = words.has("head") && words.get("head") !== "mean" ? Number(words.get("head")) : "mean";
    this.kind = words.get("kind") === "rollout" ? "rollout" : "attention";
    this.view = { keep: Number(words.get("keep") ?? 1), smooth: words.has("smooth"), colour: words.has("colour"), same: !words.has("own"), stretch: words.has("stretch"),
      size: words.has("size") ? Number(words.get("size")) : null };
    // Position of the query in the image, in 0..1; null: the class token. Shuffling moves the patch, not this.
    const [y, x] = (words.get("asked") ?? "").split(",").map(Number);
    this.asked = x === undefined ? null : { y, x };
    this.pinned = this.asked !== null;
    this.hovered = null;
    this.answer = null;
    this.image = null;
    Object.assign(this, { openings: latest(), drawings: latest() });
  }

  get two() { return this.sides[1].model !== ""; }
  get looks() { return this.panels.map((panel) => panel.look); }
  // The panel whose layers and heads the controls list: the first with attention.
  get leading() { return this.looks.find((look) => look?.kind === "attention") ?? this.looks.find(Boolean); }

  // --- what is on the page ------------------------------------------------------------------------

  build(images) {
    this.panels = [0, 1].map((side) => new Panel(`Attention map ${side ? "B" : "A"}`, {
      hover: (place) => this.hover(side, place), pick: (place) => this.pick(side, place), head: (head) => this.setHead(head),
    }));
    this.explained = el("section", { class: "explained card", "aria-label": "Query, key, value" });
    this.difference = el("p", { class: "difference", role: "status" });
    this.overview = new Overview((layer, head) => { this.layer = layer; this.setHead(head); });
    this.all = el("details", { class: "all noprint", open: true, ontoggle: () => this.refresh() },
      this.allName = el("summary", null, "All layers and heads"),
      el("p", { class: "soft" }, "Rows are layers, first on top; columns are heads. Each map goes from 0 to its largest weight, or to twice the even share where that is more."),
      el("div", { class: "scroll" }, this.overview.canvas));
    this.trouble = el("div", { class: "note", role: "alert", hidden: true });
    this.toolbar = el("div", { class: "tools noprint" });
    this.wait = el("p");
    this.boxes = el("div", { class: "panels" }, this.panels.map((panel) => panel.node));
    const help = el("details", { class: "keys noprint" }, el("summary", null, "Keys"),
      el("p", { class: "soft" }, "Layers, heads, rows and columns count from 0, as in saccade attend."),
      el("dl", null, HELP.map(([key, what]) => el("div", null, el("dt", { class: "code" }, key), el("dd", null, what)))));
    this.work = el("div", { class: "work" }, this.toolbar, this.trouble, this.wait, this.boxes, this.difference, this.all, help);
    replace(this.root, el("h1", null, HEADING),
      el("div", { class: "attention-grid" }, images, this.work, this.explained));
    for (const panel of this.panels) panel.canvas.addEventListener("keydown", (event) => this.key(event));
    explainNothing(this.explained, "Choose an image, then click a patch.");
    this.tools();
  }

  tools() {
    const names = this.models.map((model) => ({ value: model.id, text: model.name }));
    const sides = this.sides.map((side, i) => el("div", { class: "side" },
      field(i ? "Compare with" : "Model", select(i ? [{ value: "", text: "nothing" }, ...names] : names, side.model,
        (model) => { side.model = model; this.reopen(); })),
      !live || (i && !this.two) ? null : this.check("shuffled", side.shuffle, (on) => { side.shuffle = on; this.reopen(); }),
      !live || (i && !this.two) ? null : this.check("no positions", !side.positions, (on) => { side.positions = !on; this.reopen(); })));
    const first = this.leading;
    const attention = !first || first.kind === "attention";
    const depth = first?.depth ?? 1, heads = first?.heads ?? 1;
    this.layerInput = el("input", { type: "range", min: 0, max: depth - 1, value: this.layer ?? depth - 1,
      oninput: (event) => { this.layer = Number(event.target.value); this.refresh(true); }, onchange: () => this.refresh() });
    this.layerName = el("output");
    const headNames = [{ value: "mean", text: "mean of all" },
      ...Array.from({ length: heads }, (_, h) => ({ value: String(h), text: `head ${h}` }))];
    this.headInput = select(headNames, String(this.head), (head) => this.setHead(head === "mean" ? head : Number(head)));
    const kinds = [{ value: "attention", text: "attention of a layer" }];
    if (!first || rolls(first)) kinds.push({ value: "rollout", text: "rollout, all layers" });
    this.kindInput = select(kinds, this.kind, (kind) => { this.kind = kind; this.tools(); this.refresh(); });
    const keep = el("input", { type: "range", min: 5, max: 100, step: 5, value: 100 * this.view.keep,
      oninput: (event) => {
        this.view.keep = Number(event.target.value) / 100;
        event.target.nextSibling.textContent = `${event.target.value} %`;
        this.refresh();
      } });
    const sizes = [{ value: "", text: "the model's own" }, ...[224, 336, 448, 672].map((px) => ({ value: String(px), text: `${px} px` }))];
    redraw(this.toolbar, () => replace(this.toolbar,
      el("div", { class: "row" }, sides,
        live ? el("button", { type: "button", onclick: () => this.orderQuestion() }, "Shuffle patches") : null),
      el("div", { class: "row" },
        attention ? field("Method", this.kindInput) : null,
        attention && this.kind === "attention" ? field("Layer", el("span", { class: "slider" }, this.layerInput, this.layerName)) : null,
        attention && this.kind === "attention" ? field("Head", this.headInput) : null,
        el("button", { type: "button", onclick: () => this.ask(null) }, attention ? "Query: class token" : "Query: whole image"),
        saver(this)),
      el("div", { class: "row" },
        field("Top attention mass", el("span", { class: "slider" }, keep, el("output", null, `${Math.round(100 * this.view.keep)} %`))),
        live && field("Size", select(sizes, this.view.size ? String(this.view.size) : "", (px) => { this.view.size = px ? Number(px) : null; this.reopen(); })),
        this.check("smooth", this.view.smooth, (on) => { this.view.smooth = on; this.refresh(); }),
        this.check("colours of the image", this.view.colour, (on) => { this.view.colour = on; this.refresh(); }),
        this.check("stretch", this.view.stretch, (on) => { this.view.stretch = on; this.refresh(); }),
        this.two ? this.check("one scale", this.view.same, (on) => { this.view.same = on; this.refresh(); }) : null),
      this.looks.filter((look) => look?.kind === "similarity").map(({ name }) => el("p", { class: "soft" },
        `${name} has no attention: the map shows the cosine similarity of its tokens. ` +
        "It does not show where the network looks."))));
    this.named();
  }

  check(text, on, onchange) {
    return el("label", { class: "check" },
      el("input", { type: "checkbox", checked: on, onchange: (event) => onchange(event.target.checked) }), text);
  }

  named() {
    const look = this.leading, depth = look?.depth ?? 1;
    const layer = this.layer ?? depth - 1;
    this.layerName.textContent = `${look?.layerName(layer) ?? layer} of 0 to ${(look?.wholeDepth ?? depth) - 1}`;
    this.layerInput.value = layer;
    this.headInput.value = String(this.head);
  }

  // --- looking ------------------------------------------------------------------------------------

  async setImage(image) {
    this.image = image;
    await this.reopen();
  }

  orderQuestion() {
    const [a, b] = this.sides;
    Object.assign(b, { model: a.model, shuffle: true, positions: a.positions });
    a.shuffle = false;
    this.view.same = true;
    this.reopen();
  }

  async reopen() {
    if (!this.image || !this.sides[0].model) return;
    const still = this.openings(), { image } = this;
    this.boxes.setAttribute("aria-busy", "true");
    // The first request loads the network; later ones show the previous picture until they are answered.
    if (!this.leading) replace(this.wait, loadingText("Running the network on the image."));
    const answers = await Promise.allSettled(this.sides.map((side) => side.model === "" ? null : ModelView.open({
      model: side.model, image: image.id, size: this.view.size, shuffle: side.shuffle ? SEED : null,
      positions: side.positions }, this.signal)));
    if (!still() || this.signal.aborted) return;
    try {
      this.settle(answers, image);
      await this.refresh();
    } finally {
      if (still()) {
        this.boxes.removeAttribute("aria-busy");
        replace(this.wait);
      }
    }
  }

  complain(error) {
    this.trouble.hidden = false;
    replace(this.trouble, el("strong", null, error.message), error.said?.hint ? el("p", null, error.said.hint) : null);
  }

  // Every panel gets its model view, or the reason why there is none.
  settle(answers, image) {
    this.trouble.hidden = true;
    this.painted = null;
    this.of = image;
    answers.forEach(({ value: look, reason }, side) => {
      const panel = this.panels[side];
      panel.node.hidden = !look && !reason;
      if (look) panel.setLook(look, this.titleOf(side, look));
      else if (reason) panel.refuse(reason, this.titleOf(side));
      else panel.look = panel.shown = null;
    });
    this.root.classList.toggle("two", this.two);
    const first = this.leading;
    if (first?.kind === "attention") { // a network without attention leaves layer and head to the next one that has it
      this.layer = Math.min(this.layer ?? first.depth - 1, first.depth - 1);
      if (this.head !== "mean" && this.head >= first.heads) this.head = "mean";
    }
    if (!this.looks.every((look) => !look || rolls(look))) this.kind = "attention";
    this.tools();
    if (first) return;
    this.all.hidden = true;
    replace(this.difference);
    explainNothing(this.explained, "No map is shown.");
    this.remember();
  }

  titleOf(side, look) {
    const named = this.models.find((model) => model.id === this.sides[side].model).name;
    const same = !look || named.includes(look.name) || look.name.startsWith(named);
    return [this.two ? `${"AB"[side]}: ` : "", named, same ? "" : ` (${look.name})`,
      look?.order ? ", patches shuffled" : "", same && !this.sides[side].positions ? ", without positions" : ""].join("");
  }

  // The patch of the image at a position of one panel, as a point in 0..1.
  pointAt(side, place) {
    const { look } = this.panels[side];
    const patch = look.patchAt(place), [rows, columns] = look.grid;
    return { y: (Math.floor(patch / columns) + 0.5) / rows, x: ((patch % columns) + 0.5) / columns };
  }

  placeOf(look, point) {
    if (point === null) return null;
    const [rows, columns] = look.grid;
    return look.placeOf(Math.min(rows - 1, Math.floor(point.y * rows)) * columns + Math.min(columns - 1, Math.floor(point.x * columns)));
  }

  kindOf(look) { return look.kind === "similarity" ? "similarity" : this.kind; }
  layerOf(look) { return look.kind === "similarity" ? 0 : Math.min(this.layer, look.depth - 1); }
  token(look, place) { return place === null ? 0 : look.prefix + place; }

  hover(side, place) {
    const point = place === null ? null : this.pointAt(side, place);
    if (JSON.stringify(point) === JSON.stringify(this.hovered)) return;
    this.hovered = point;
    if (this.pinned) this.setAnswer(point); else this.refresh(true);
  }

  pick(side, place) {
    if (place === null) return;
    const point = this.pointAt(side, place);
    const again = this.pinned && JSON.stringify(point) === JSON.stringify(this.asked);
    this.pinned = !again;
    this.ask(again ? null : point);
  }

  ask(point) {
    this.asked = point;
    this.pinned = point !== null || this.pinned === true;
    if (point === null) this.pinned = false;
    this.answer = null;
    this.hovered = null;
    return this.refresh();
  }

  setAnswer(point) { this.answer = point; this.refresh(true); }
  setHead(head) { this.head = head; this.named(); this.refresh(); }

  // The current settings; the painted numbers were requested with them.
  get controls() {
    const { layer, head, kind, asked, pinned, answer, view } = this;
    return { layer, head, kind, asked, pinned, answer, view: { ...view } };
  }

  // `light`: only what follows the pointer. If the request fails, the reason is shown and the controls are reset.
  async refresh(light = false) {
    const still = this.drawings();
    try {
      await this.draw(light, still);
    } catch (error) {
      if (!still() || this.signal.aborted) return;
      this.complain(error);
      if (!this.painted) return;
      Object.assign(this, this.painted, { view: { ...this.painted.view, size: this.view.size } }); // the size is part of the model view
      this.tools();
    }
  }

  async draw(light, still) {
    const shown = this.panels.filter(({ look }) => look);
    if (!shown.length) return;
    this.named();
    const { controls } = this;
    const point = this.pinned || !this.hovered ? this.asked : this.hovered;
    const asked = shown.map(({ look }) => {
      const place = this.placeOf(look, point), kind = this.kindOf(look), layer = this.layerOf(look);
      const now = look.rowsNow(kind, layer, this.token(look, place));
      return { look, place, kind, layer, values: now ?? look.rows(kind, layer, this.token(look, place), this.signal) };
    });
    const waiting = asked.some(({ values }) => values instanceof Promise);
    const rows = waiting ? await Promise.all(asked.map(({ values }) => values)) : asked.map(({ values }) => values);
    if (!still() || this.signal.aborted) return;
    this.painted = controls;
    if (!light) this.trouble.hidden = true;
    const maps = asked.map(({ look, kind }, i) => selectHead(rows[i], look.tokens, look.prefix, this.headOf(look, kind)));
    const parts = asked.map(({ place, kind, layer }, i) => ({ own: range(maps[i]), even: shown[i].even(kind, { layer, place }) }));
    const limits = this.view.same && maps.length === 2 && asked[0].kind === asked[1].kind
      ? sharedLimits(asked[0].kind, parts, this.view.stretch) : [];
    asked.forEach(({ look, place, kind, layer }, i) => {
      const pointed = this.answer === null ? null : this.placeOf(look, this.answer);
      shown[i].draw(rows[i], kind, { ...this.view, image: this.of, layer, head: this.headOf(look, kind), place, pointed, limits: limits[i] });
    });
    replace(this.difference, difference(asked, maps, this.sides[0].model === this.sides[1].model));
    if (!light) this.announce(asked[0], maps[0]);
    const lead = asked.findIndex(({ look }) => look === this.leading);
    await Promise.all([this.explainPair(asked[lead], rows[lead], still), this.drawAll(asked[lead], still)]);
    if (!light && still() && !this.signal.aborted) this.remember();
  }

  headOf(look, kind) { return kind !== "attention" || (this.head !== "mean" && this.head >= look.heads) ? "mean" : this.head; }

  announce({ look, place, kind }, map) {
    const most = map.indexOf(range(map).high);
    const who = place === null ? "The class token" : `The patch in ${where(place, look.grid[1])}`;
    say(`${who}: most ${kind === "similarity" ? "alike" : "attention"} in ${where(most, look.grid[1])}.`);
  }

  async explainPair({ look, place, kind, layer }, rows, still) {
    if (kind !== "attention") {
      explainNothing(this.explained, kind === "rollout" ? "Rollout combines all layers and has no single query and key. Choose the attention of a layer."
        : "This network has no queries and keys.");
      return;
    }
    if (this.answer === null && !this.pinned && place !== null) {
      explainNothing(this.explained, "Click a patch to fix the query, then point at another to see every number between the two.");
      return;
    }
    const [query, key] = [this.token(look, place), this.answer === null ? this.strongest(look, rows) : this.token(look, this.placeOf(look, this.answer))];
    const head = this.head !== "mean" && this.head < look.heads ? this.head : look.headOf(rows, key);
    const note = this.head === "mean" ? "The mean over heads has no score; this is the head in which this key has the largest weight." : "";
    try {
      const pair = await look.pair(layer, head, query, key, this.signal);
      if (!still() || this.signal.aborted) return;
      const name = (token) => token < look.prefix ? "the class token" : `the patch in ${where(token - look.prefix, look.grid[1])}`;
      explain(this.explained, pair, { query: name(query), key: name(key), layer: look.layerName(layer), head }, note);
    } catch (error) {
      if (!this.signal.aborted && still()) explainNothing(this.explained, error.message);
    }
  }

  strongest(look, rows) {
    const map = selectHead(rows, look.tokens, look.prefix, this.headOf(look, "attention"));
    return look.prefix + map.indexOf(range(map).high);
  }

  async drawAll({ look, place, kind }, still) {
    this.all.hidden = kind !== "attention";
    this.allName.textContent = `All layers and heads${this.two ? ` of ${"AB"[this.looks.indexOf(look)]}` : ""}`;
    if (kind !== "attention" || !this.all.open) return;
    const values = await look.allLayers(this.token(look, place), this.signal).catch((error) => { this.all.hidden ||= still(); throw error; });
    if (still()) this.overview.draw(values, look, { layer: this.layer, head: this.headOf(look, kind), token: this.token(look, place), stretch: this.view.stretch });
  }

  // --- keys and the address -----------------------------------------------------------------------

  key(event) {
    const look = this.leading, key = event.key.toLowerCase();
    if (!look || event.ctrlKey || event.metaKey || event.altKey) return;
    const [rows, columns] = look.grid;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      const from = (event.shiftKey ? this.answer : this.asked) ?? { y: 0.5, x: 0.5 };
      const move = (value, by, count) => (Math.min(count - 1, Math.max(0, Math.floor(value * count) + by)) + 0.5) / count;
      const to = { y: move(from.y, step[0], rows), x: move(from.x, step[1], columns) };
      this.pinned = true;
      if (event.shiftKey) this.setAnswer(to); else this.ask(to);
    } else if (key === "c" || event.key === "Escape") this.ask(null);
    else if (key === "m") this.setHead("mean");
    else if (key === "r" && rolls(look)) { this.kind = this.kind === "rollout" ? "attention" : "rollout"; this.tools(); this.refresh(); }
    else if (event.key === "[" || event.key === "]") {
      this.layer = Math.min(look.depth - 1, Math.max(0, this.layer + (event.key === "]" ? 1 : -1)));
      this.refresh();
    } else if (event.key === "," || event.key === ".") {
      const at = this.head === "mean" ? -1 : this.head;
      this.setHead(((at + (event.key === "." ? 1 : -1) + look.heads + (at < 0 && event.key === "," ? 1 : 0)) % look.heads));
    } else return;
    event.preventDefault();
  }

  // The address holds the current state, so that it can be opened again; ids are valid while the server runs.
  remember() {
    if (!live) return;
    history.replaceState(null, "", `${location.pathname}#/attention?${addressOf(this)}`);
  }
}
