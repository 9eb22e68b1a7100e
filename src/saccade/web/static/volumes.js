// Volumes: three planes that go through one voxel, the attention of its patch over them, and the whole in 3D.

import { json } from "./ask.js";
import { chooser } from "./chooser.js";
import { el, field, redraw, replace, say, select } from "./dom.js";
import { choose, elsewhere, Look } from "./look.js";
import { compact, mask, percent, range } from "./maps.js";
import { newest } from "./newest.js";
import { explain, nothing } from "./pair.js";
import { Plane, PLANES } from "./plane.js";
import { Solid } from "./solid.js";
import { begin, waiting } from "./waiting.js";

const HEADING = "Where does this voxel look?";

export async function show(root, context) {
  begin(root, HEADING, "Asking which models and runs of volumes there are.");
  const [models, runs] = await Promise.all([json("attention/models", {}, context.signal), json("runs", {}, context.signal)]);
  const volumes = models.filter((model) => model.axes === 3);
  if (!volumes.length) {
    replace(root, el("h1", null, HEADING), el("p", null, "No model of volumes is on the desk. ",
      el("code", null, "saccade pretrain VOLUMES --out RUN"), " makes one; ", el("code", null, "saccade view RUN"), " shows it."));
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
    Object.assign(this, { root, models, signal: context.signal, model: models[0].id, layer: null, head: "mean", kind: "attention",
      keep: 1, smooth: true, asked: null, openings: newest(), drawings: newest() });
  }

  build(images) {
    this.planes = PLANES.map((plane) => new Plane(plane, { pick: (voxel) => this.pick(voxel), turn: (axis, by) => this.move(axis, by) }));
    for (const plane of this.planes) plane.canvas.addEventListener("keydown", (event) => this.key(event, plane));
    this.tools = el("div", { class: "tools noprint" });
    this.words = el("p", { class: "words" });
    this.scale = el("div", { class: "scale" });
    this.explained = el("section", { class: "explained card", "aria-label": "Query, key, value" });
    this.trouble = el("div", { class: "note", role: "alert", hidden: true });
    this.solidCanvas = el("canvas", { width: 384, height: 384, role: "img", "aria-label": "3D view, drag to turn" });
    this.solidWords = el("p", { class: "soft" }, "Drag to turn it. Shown is the tenth of the patches that has most.");
    const solid = el("figure", { class: "panel plane" }, el("figcaption", null, "3D"), el("div", { class: "solid" }, this.solidCanvas), this.solidWords);
    replace(this.root, el("h1", null, HEADING), el("div", { class: "explorer-grid" }, images,
      el("div", { class: "work" }, this.tools, this.trouble, el("div", { class: "planes" }, this.planes.map((plane) => plane.node), solid),
        this.scale, this.words, el("p", { class: "soft noprint" }, "Click a voxel: its patch asks. Arrow keys move the voxel by a patch, ",
          "Page up and Page down through the planes; C: the class token asks.")),
      this.explained));
    this.drawTools();
  }

  drawTools() {
    const attention = !this.look || this.look.kind === "attention", depth = this.look?.depth ?? 1, heads = this.look?.heads ?? 1;
    const again = (change) => { change(); this.refresh(); };
    this.layerName = el("output", null, `${this.layer ?? depth - 1} of 0 to ${depth - 1}`);
    redraw(this.tools, () => replace(this.tools, el("div", { class: "row" },
      field("Model", select(this.models.map(({ id, name }) => ({ value: id, text: name })), this.model, (id) => { this.model = id; this.open(this.image); })),
      attention ? field("Shown", select([{ value: "attention", text: "attention of a layer" }, { value: "rollout", text: "rollout, all layers" }], this.kind,
        (kind) => again(() => { this.kind = kind; }))) : null,
      attention ? field("Layer", el("span", { class: "slider" }, el("input", { type: "range", min: 0, max: depth - 1, value: this.layer ?? depth - 1,
        oninput: (event) => again(() => { this.layer = Number(event.target.value); this.layerName.textContent = `${event.target.value} of 0 to ${depth - 1}`; }) }), this.layerName)) : null,
      attention ? field("Head", select([{ value: "mean", text: "mean of all" }, ...Array.from({ length: heads }, (_, h) => ({ value: String(h), text: `head ${h}` }))],
        String(this.head), (head) => again(() => { this.head = head === "mean" ? head : Number(head); }))) : null,
      field("Keep the share", el("input", { type: "range", min: 5, max: 100, step: 5, value: 100 * this.keep,
        oninput: (event) => again(() => { this.keep = Number(event.target.value) / 100; }) })),
      el("button", { type: "button", onclick: () => again(() => { this.asked = null; }) }, attention ? "Class token asks" : "Whole volume asks"),
      el("label", { class: "check" }, el("input", { type: "checkbox", checked: this.smooth,
        onchange: (event) => again(() => { this.smooth = event.target.checked; }) }), "smooth"))));
  }

  async open(image) {
    const still = this.openings();
    this.image = image;
    this.root.setAttribute("aria-busy", "true");
    if (!this.look) replace(this.words, waiting("The network is looking at the volume."));
    try {
      const look = await Look.volume({ model: this.model, image: image.id }, this.signal);
      if (!still() || this.signal.aborted) return;
      this.trouble.hidden = true;
      this.look = look;
      this.layer = Math.min(this.layer ?? look.depth - 1, look.depth - 1);
      if (this.head !== "mean" && this.head >= look.heads) this.head = "mean";
      this.at = this.at && this.at.every((value, axis) => value < look.size_px[axis]) ? this.at : look.size_px.map((side) => side >> 1);
      if (this.asked !== null) this.asked = this.patchOf(this.at); // the same place in another grid
      this.drawTools();
      this.solid = null;
      await this.refresh();
      Solid.open(this.solidCanvas, look.cube, look.size_px, look.grid).then((solid) => {
        if (!still() || this.signal.aborted) return;
        this.solid = solid;
        this.solid.show(this.map, this.inside);
        this.solidCanvas.dataset.drawn = "yes";
      }, (error) => { this.solidCanvas.parentNode.hidden = true; this.solidWords.textContent = error.message; });
    } catch (error) {
      if (this.signal.aborted || !still()) return;
      if (!this.look) replace(this.words);
      this.trouble.hidden = false;
      replace(this.trouble, el("strong", null, `${image.name}: ${error.message}`), error.said?.hint ? el("p", null, error.said.hint) : null);
    } finally { if (still()) this.root.removeAttribute("aria-busy"); }
  }

  patchOf(voxel) { return voxel.map((value, axis) => Math.floor((value * this.look.grid[axis]) / this.look.size_px[axis])); }
  placeOf([z, y, x]) { return (z * this.look.grid[1] + y) * this.look.grid[2] + x; }
  name(place) {
    const [, rows, columns] = this.look.grid;
    return `plane ${Math.floor(place / (rows * columns))}, row ${Math.floor(place / columns) % rows}, column ${place % columns}`;
  }

  pick(voxel) {
    if (!this.look) return;
    this.at = voxel;
    this.asked = this.patchOf(voxel);
    return this.refresh();
  }

  move(axis, by) {
    if (!this.look) return;
    this.at = this.at.map((value, i) => (i === axis ? Math.min(this.look.size_px[i] - 1, Math.max(0, value + by)) : value));
    this.paint();
    if (this.told) this.say(...this.told);
  }

  key(event, plane) {
    if (!this.look || event.ctrlKey || event.metaKey || event.altKey) return;
    const patch = (axis) => this.look.size_px[axis] / this.look.grid[axis];
    const down = plane.flip ? -1 : 1;
    const step = { ArrowUp: [plane.down, -down], ArrowDown: [plane.down, down], ArrowLeft: [plane.across, -1], ArrowRight: [plane.across, 1],
      PageUp: [plane.normal, 1], PageDown: [plane.normal, -1] }[event.key];
    if (step) {
      const [axis, by] = step;
      const to = this.at.map((value, i) => (i === axis ? Math.min(this.look.size_px[i] - 1, Math.max(0, Math.round(value + by * patch(axis)))) : value));
      this.pick(to);
    } else if (event.key.toLowerCase() === "c") { this.asked = null; this.refresh(); } else return;
    event.preventDefault();
  }

  async refresh() {
    const { look } = this;
    if (!look) return;
    const still = this.drawings();
    const kind = look.kind === "similarity" ? "similarity" : this.kind;
    const layer = kind === "similarity" ? 0 : this.layer, head = kind === "attention" ? this.head : "mean";
    const token = this.asked === null ? 0 : look.prefix + this.placeOf(this.asked);
    const rows = await look.rows(kind, layer, token, this.signal);
    if (!still() || this.signal.aborted) return;
    this.map = choose(rows, look.tokens, look.prefix, head);
    this.limits = range(this.map);
    this.inside = this.keep < 1 ? mask(this.map, this.keep) : null;
    this.paint();
    this.solid?.show(this.map, this.inside);
    this.told = [rows, kind, head];
    this.say(...this.told);
    await this.explainPair(rows, kind, layer, head, token, still);
  }

  paint() {
    if (!this.map) return;
    const { look } = this;
    for (const plane of this.planes) {
      plane.draw({ cube: look.cube, size: look.size_px, map: this.map, grid: look.grid, at: this.at, limits: this.limits, inside: this.inside,
        smooth: this.smooth, asked: this.asked });
      plane.caption.textContent = `${plane.name} ${this.at[plane.normal]} of 0 to ${look.size_px[plane.normal] - 1}`;
    }
  }

  say(rows, kind, head) {
    const { look } = this, number = kind === "similarity" ? compact : percent;
    const most = this.map.indexOf(this.limits.high), here = this.map[this.placeOf(this.patchOf(this.at))];
    const who = this.asked === null ? (kind === "similarity" ? "The whole volume" : "The class token") : `The patch in ${this.name(this.placeOf(this.asked))}`;
    replace(this.scale, el("span", null, number(this.limits.low)), el("span", { class: "ramp" }), el("span", null, number(this.limits.high)));
    replace(this.words, `${who} asks. Most: `, el("strong", null, this.name(most)), ` with ${number(this.limits.high)}`,
      kind === "similarity" ? "." : ` (an even share is ${percent(1 / look.tokens)}); the class token takes ${percent(elsewhere(rows, look.tokens, look.prefix, head))}.`,
      ` Under the cross: ${number(here)}.`);
    say(`${who}: most in ${this.name(most)}`);
  }

  async explainPair(rows, kind, layer, head, query, still) {
    const { look } = this;
    if (kind !== "attention") {
      nothing(this.explained, kind === "rollout" ? "Rollout multiplies the layers: it has no query and key of its own." : "This network has no queries and keys.");
      return;
    }
    const key = look.prefix + this.map.indexOf(this.limits.high);
    let chosen = head;
    if (head === "mean") {
      chosen = 0;
      for (let h = 1; h < look.heads; h++) if (rows[h * look.tokens + key] > rows[chosen * look.tokens + key]) chosen = h;
    }
    const pair = await look.pair(layer, chosen, query, key, this.signal).catch(() => null);
    if (!pair || !still()) return;
    const name = (token) => (token < look.prefix ? "the class token" : `the patch in ${this.name(token - look.prefix)}`);
    explain(this.explained, pair, { query: name(query), key: name(key), layer, head: chosen },
      head === "mean" ? "The mean has no score of its own: this is the head in which this key has most." : "");
  }
}
