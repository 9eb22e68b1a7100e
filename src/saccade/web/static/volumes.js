// Volumes: three planes that go through one voxel, the attention of its patch over them, and the whole in 3D.

import { json } from "./server_api.js";
import { chooser } from "./image_chooser.js";
import { el, field, redraw, replace, select } from "./dom.js";
import { ModelView } from "./model_view.js";
import { sharedLimits } from "./patch_maps.js";
import { latest } from "./latest_request.js";
import { explain, explainNothing } from "./query_key_value.js";
import { Volume3D } from "./volume_3d.js";
import { volumeSaver } from "./save_volume.js";
import { VolumePanel } from "./volume_panel.js";
import { showLoading, loadingText } from "./loading.js";

const HEADING = "Volume attention";

export async function show(root, context) {
  showLoading(root, HEADING, "Loading models and runs.");
  const [models, runs] = await Promise.all([json("attention/models", {}, context.signal), json("runs", {}, context.signal)]);
  const volumes = models.filter((model) => model.axes === 3);
  if (!volumes.length) {
    replace(root, el("h1", null, HEADING), el("p", null, "No volume models found. ",
      el("code", null, "saccade pretrain VOLUMES --out RUN"), " creates one; ", el("code", null, "saccade view RUN"), " opens it."));
    return;
  }
  const page = new Volumes(root, context, volumes);
  const images = chooser(context, runs.filter((run) => run.axes === 3), { accept: ".nii,.nii.gz,.gz" }, (image) => page.open(image));
  page.build(images.node);
  const first = await images.start();
  if (first) await page.open(first);
  images.node.querySelector(`[data-id="${first?.id}"]`)?.setAttribute("aria-selected", "true");
}

class Volumes {
  constructor(root, context, models) {
    Object.assign(this, { root, models, signal: context.signal, layer: null, head: "mean", kind: "attention", keep: 1, smooth: true, stretch: false,
      image: null, mm: null, asked: null, of: null, solid: null, openings: latest(), drawings: latest() });
    const events = { pick: (side, voxel) => this.pick(side, voxel), turn: (side, axis, by) => this.move(side, axis, by),
      key: (side, event, plane) => this.key(side, event, plane) };
    this.sides = ["A", "B"].map((letter) => new VolumePanel(letter, events));
    this.sides[0].model = models[0].id;
    this.sides[1].model = "";
  }

  get two() { return this.sides[1].model !== ""; }
  get seen() { return this.sides.filter((side) => side.look); }
  // The panel whose layers and heads the controls list: the first with attention.
  get leading() { return (this.seen.find(({ look }) => look.kind === "attention") ?? this.seen[0])?.look; }

  build(images) {
    this.tools = el("div", { class: "tools noprint" });
    this.wait = el("p");
    this.explained = el("section", { class: "explained card", "aria-label": "Query, key, value" });
    this.trouble = el("div", { class: "note", role: "alert", hidden: true });
    this.solidPlace = el("div", { class: "solid" });
    this.solidWords = el("p", { class: "soft" }, "Drag to turn it. Shown is the tenth of the patches that has most.");
    this.sides[0].pictures.append(el("figure", { class: "panel plane" }, el("figcaption", null, "3D"),
      this.solidPlace, this.solidWords));
    this.signal.addEventListener("abort", () => this.solid?.close());
    for (const side of this.sides) side.pictures.hidden = side.caption.hidden = true;
    this.views = el("div");
    replace(this.root, el("h1", null, HEADING), el("div", { class: "attention-grid" }, images,
      el("div", { class: "work" }, this.tools, this.trouble, this.wait, this.views, el("p", { class: "soft noprint" },
        "Click a voxel: its patch asks. Arrow keys move the voxel by a patch, Page up and Page down through the planes; C: the class token asks.")),
      this.explained));
    replace(this.views, this.sides[0].node);
    this.drawTools();
  }

  drawTools() {
    const { leading } = this, attention = !leading || leading.kind === "attention", depth = leading?.depth ?? 1, heads = leading?.heads ?? 1;
    const again = (change) => { change(); this.refresh(); };
    const names = this.models.map(({ id, name }) => ({ value: id, text: name }));
    const model = (side, options) => select(options, side.model, (id) => { side.model = id; this.open(this.image); });
    this.layerName = el("output", null, `${this.layer ?? depth - 1} of 0 to ${depth - 1}`);
    redraw(this.tools, () => replace(this.tools, el("div", { class: "row" },
      field("Model", model(this.sides[0], names)),
      field("Compare with", model(this.sides[1], [{ value: "", text: "nothing" }, ...names])),
      attention ? field("Method", select([{ value: "attention", text: "attention of a layer" }, { value: "rollout", text: "rollout, all layers" }], this.kind,
        (kind) => again(() => { this.kind = kind; }))) : null,
      attention ? field("Layer", el("span", { class: "slider" }, el("input", { type: "range", min: 0, max: depth - 1, value: this.layer ?? depth - 1,
        oninput: (event) => again(() => { this.layer = Number(event.target.value); this.layerName.textContent = `${event.target.value} of 0 to ${depth - 1}`; }) }), this.layerName)) : null,
      attention ? field("Head", select([{ value: "mean", text: "mean of all" }, ...Array.from({ length: heads }, (_, h) => ({ value: String(h), text: `head ${h}` }))],
        String(this.head), (head) => again(() => { this.head = head === "mean" ? head : Number(head); }))) : null,
      field("Top attention mass", el("input", { type: "range", min: 5, max: 100, step: 5, value: 100 * this.keep,
        oninput: (event) => again(() => { this.keep = Number(event.target.value) / 100; }) })),
      el("button", { type: "button", onclick: () => again(() => { this.asked = null; }) }, attention ? "Query: class token" : "Query: whole volume"),
      el("label", { class: "check" }, el("input", { type: "checkbox", checked: this.smooth,
        onchange: (event) => again(() => { this.smooth = event.target.checked; }) }), "smooth"),
      el("label", { class: "check" }, el("input", { type: "checkbox", checked: this.stretch,
        onchange: (event) => again(() => { this.stretch = event.target.checked; }) }), "stretch"),
      volumeSaver(this, (error) => this.complain(error)))));
  }

  complain(error) {
    if (this.signal.aborted) return;
    this.trouble.hidden = false;
    replace(this.trouble, el("strong", null, error.message));
  }

  async open(image) {
    if (!image) return; // a model can be chosen before there is a volume
    const still = this.openings();
    this.image = image;
    this.root.setAttribute("aria-busy", "true");
    if (!this.seen.length) replace(this.wait, loadingText("Running the network on the volume."));
    const ask = ({ model }) => (model === "" ? null : ModelView.volume({ model, image: image.id }, this.signal));
    const answers = await Promise.allSettled(this.sides.map(ask));
    if (!still() || this.signal.aborted) return;
    this.trouble.hidden = true;
    this.solid?.close();
    this.solid = null;
    this.settle(answers);
    replace(this.views, this.sides.filter(({ model }) => model !== "").map((side) => side.node));
    this.drawTools();
    await this.refresh();
    if (!still()) return;
    this.root.removeAttribute("aria-busy");
    replace(this.wait);
    this.openSolid(still);
  }

  // Every side gets its model view, or the reason why there is none. Selected voxels keep their position in the volume.
  settle(answers) {
    const anew = this.of?.id !== this.image.id, before = anew ? this.seen[0]?.look.cube_mm ?? null : null;
    this.of = this.image;
    this.painted = null;
    answers.forEach(({ value, reason }, i) => {
      const side = this.sides[i], name = this.models.find(({ id }) => id === side.model)?.name;
      side.title = `${this.two ? `${side.letter}: ` : ""}${name}`;
      if (value) side.setLook(value, this.two ? side.title : "");
      else if (reason) { side.refuse(reason); side.caption.hidden = !this.two; side.caption.textContent = side.title; } else side.clear();
    });
    const { leading } = this;
    if (!leading) { explainNothing(this.explained, "No map is shown."); return; }
    if (leading.kind === "attention") {
      this.layer = Math.min(this.layer ?? leading.depth - 1, leading.depth - 1);
      if (this.head !== "mean" && this.head >= leading.heads) this.head = "mean";
    }
    const [first] = this.seen;
    // In another volume the position in the cube is kept.
    const along = (mm) => mm && before && mm.map((at, axis) => first.look.cube_mm.start[axis]
      + ((at - before.start[axis]) / before.side) * first.look.cube_mm.side);
    if (anew) [this.mm, this.asked] = [along(this.mm), along(this.asked)];
    this.mm ??= first.toMm(first.look.size_px.map((side) => side >> 1));
  }

  async openSolid(still) {
    const [side] = this.sides;
    if (!side.look) return;
    const canvas = el("canvas", { width: 384, height: 384, role: "img", "aria-label": "3D view, drag to turn" });
    replace(this.solidPlace, canvas);
    try {
      const solid = await Volume3D.open(canvas, side.look.cube, side.look.size_px, side.look.grid);
      if (!still() || this.signal.aborted) { solid.close(); return; }
      this.solid = solid;
      if (side.map) this.solid.show(side.map, side.inside);
      canvas.dataset.drawn = "yes";
    } catch (error) {
      this.solidPlace.hidden = true;
      this.solidWords.textContent = error.message;
    }
  }

  at(side) { return side.toVoxel(this.mm); }

  pick(side, voxel) {
    this.mm = this.asked = side.toMm(voxel);
    return this.refresh();
  }

  move(side, axis, by) {
    if (!side.look) return;
    this.mm = side.toMm(this.at(side).map((value, i) => (i === axis ? Math.min(side.look.size_px[i] - 1, Math.max(0, value + by)) : value)));
    this.paint();
  }

  key(side, event, plane) {
    const { look } = side;
    if (!look || event.ctrlKey || event.metaKey || event.altKey) return;
    const patch = (axis) => look.size_px[axis] / look.grid[axis];
    const down = plane.flip ? -1 : 1;
    const step = { ArrowUp: [plane.down, -down], ArrowDown: [plane.down, down], ArrowLeft: [plane.across, -1], ArrowRight: [plane.across, 1],
      PageUp: [plane.normal, 1], PageDown: [plane.normal, -1] }[event.key];
    if (step) {
      const [axis, by] = step;
      this.pick(side, this.at(side).map((value, i) => (i === axis ? Math.min(look.size_px[i] - 1, Math.max(0, Math.round(value + by * patch(axis)))) : value)));
    } else if (event.key.toLowerCase() === "c") { this.asked = null; this.refresh(); } else return;
    event.preventDefault();
  }

  // The map of a side: similarity for networks without attention, else the selected one, if available.
  viewOf({ look }) {
    const kind = look.kind === "similarity" ? "similarity" : this.kind;
    const head = kind !== "attention" || (this.head !== "mean" && this.head >= look.heads) ? "mean" : this.head;
    return { kind, head, layer: kind === "similarity" ? 0 : Math.min(this.layer, look.depth - 1), keep: this.keep, smooth: this.smooth, stretch: this.stretch };
  }

  // If the request fails, the reason is shown and the controls are reset.
  async refresh() {
    const still = this.drawings();
    try {
      await this.draw(still);
    } catch (error) {
      if (!still() || this.signal.aborted) return;
      this.complain(error);
      Object.assign(this, this.painted);
      this.drawTools();
    }
  }

  async draw(still) {
    const { seen, layer, head, kind, keep, smooth, stretch, asked: asking } = this;
    if (!seen.length) return;
    const asked = seen.map((side) => (this.asked === null ? null : side.patchOf(side.toVoxel(this.asked))));
    const views = seen.map((side) => this.viewOf(side));
    const rows = await Promise.all(seen.map((side, i) => side.look.rows(views[i].kind, views[i].layer, side.token(asked[i]), this.signal)));
    if (!still() || this.signal.aborted) return;
    this.painted = { layer, head, kind, keep, smooth, stretch, asked: asking };
    this.trouble.hidden = true;
    seen.forEach((side, i) => side.set(rows[i], views[i], asked[i]));
    if (new Set(views.map((view) => view.kind)).size === 1) { // maps side by side share a scale
      sharedLimits(views[0].kind, seen, stretch).forEach((limits, i) => { seen[i].limits = limits; });
    }
    this.paint();
    const [first] = this.sides;
    if (first.map) this.solid?.show(first.map, first.inside);
    await this.explainPair(seen[0], still);
  }

  paint() {
    for (const side of this.seen) {
      side.paint(this.at(side));
      side.tell(this.at(side));
    }
  }

  async explainPair(side, still) {
    const { look, rows, view: { kind, layer, head } } = side;
    if (kind !== "attention") {
      explainNothing(this.explained, kind === "rollout" ? "Rollout combines all layers and has no single query and key." : "This network has no queries and keys.");
      return;
    }
    const query = side.token(side.asked), key = look.prefix + side.map.indexOf(side.own.high);
    const chosen = head === "mean" ? look.headOf(rows, key) : head;
    const pair = await look.pair(layer, chosen, query, key, this.signal).catch(() => null);
    if (!pair || !still()) return;
    const name = (token) => (token < look.prefix ? "the class token" : `the patch in ${side.name(token - look.prefix)}`);
    explain(this.explained, pair, { query: name(query), key: name(key), layer, head: chosen },
      head === "mean" ? "The mean over heads has no score; this is the head in which this key has the largest weight." : "");
  }
}
