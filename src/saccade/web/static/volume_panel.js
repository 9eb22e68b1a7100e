// A volume as one model sees it: three planes with its map over them, the scale and what is most in words.

import { el, replace, say } from "./dom.js";
import { selectHead, prefixMass } from "./model_view.js";
import { almostUniform, compact, mask, percent, range, scaleBar, scaleLimits } from "./patch_maps.js";
import { Plane, PLANES } from "./volume_plane.js";

export class VolumePanel {
  // events: {pick(side, voxel), turn(side, axis, by), key(side, event, plane)}; voxels of this side's own cube
  constructor(letter, events) {
    this.letter = letter;
    this.planes = PLANES.map((plane) => new Plane(letter === "A" ? plane : { ...plane, label: `${plane.name} plane, ${letter}` }, {
      pick: (voxel) => events.pick(this, voxel), turn: (axis, by) => events.turn(this, axis, by) }));
    for (const plane of this.planes) plane.canvas.addEventListener("keydown", (event) => events.key(this, event, plane));
    this.caption = el("h2");
    this.trouble = el("div", { class: "note", role: "alert", hidden: true });
    this.pictures = el("div", { class: "planes" }, this.planes.map((plane) => plane.node));
    this.scale = el("div", { class: "scale" });
    this.words = el("p", { class: "words" });
    this.node = el("section", null, this.caption, this.trouble, this.pictures, this.scale, this.words);
    this.look = this.map = null;
  }

  name(place) {
    const [, rows, columns] = this.look.grid;
    return `plane ${Math.floor(place / (rows * columns))}, row ${Math.floor(place / columns) % rows}, column ${place % columns}`;
  }

  placeOf([z, y, x]) { return (z * this.look.grid[1] + y) * this.look.grid[2] + x; }
  patchOf(voxel) { return voxel.map((value, axis) => Math.floor((value * this.look.grid[axis]) / this.look.size_px[axis])); }
  token(asked) { return asked === null ? 0 : this.look.prefix + this.placeOf(asked); }

  // Positions in a volume are given in millimetres, because each model has its own cube.
  toMm(voxel) {
    const { start, side } = this.look.cube_mm;
    return voxel.map((value, axis) => start[axis] + ((value + 0.5) * side) / this.look.size_px[axis]);
  }

  toVoxel(mm) {
    const { start, side } = this.look.cube_mm;
    return mm.map((value, axis) => {
      const size = this.look.size_px[axis];
      return Math.min(size - 1, Math.max(0, Math.floor(((value - start[axis]) / side) * size)));
    });
  }

  // rows [heads, tokens]; view: {kind, head, keep, smooth}; asked: the asking patch, or null for the class token
  set(rows, view, asked) {
    this.map = selectHead(rows, this.look.tokens, this.look.prefix, view.head);
    this.own = range(this.map);
    this.even = this.look.evenShare(view.kind, view.layer, this.token(asked));
    this.limits = scaleLimits(view.kind, this.own, this.even, view.stretch);
    this.inside = view.keep < 1 ? mask(this.map, view.keep) : null;
    Object.assign(this, { rows, view, asked });
  }

  paint(at) {
    if (!this.map) return;
    const { look } = this;
    for (const plane of this.planes) {
      plane.draw({ cube: look.cube, size: look.size_px, map: this.map, grid: look.grid, at, limits: this.limits, inside: this.inside,
        smooth: this.view.smooth, asked: this.asked });
      plane.caption.textContent = `${plane.name} ${at[plane.normal]} of 0 to ${look.size_px[plane.normal] - 1}`;
    }
  }

  get who() {
    const { asked, view } = this;
    if (asked !== null) return `The patch in ${this.name(this.placeOf(asked))}`;
    return view.kind === "similarity" ? "The whole volume" : "The class token";
  }

  // The query, layer and head of the pictures in words.
  get asks() {
    const { kind, layer, head } = this.view;
    if (kind !== "attention") return `${this.who}: ${kind}`;
    return `${this.who} asks; layer ${layer}, ${head === "mean" ? "mean of all heads" : `head ${head}`}`;
  }

  tell(at) {
    if (!this.map) return;
    const { look } = this, alike = this.view.kind === "similarity", number = alike ? compact : percent;
    const most = this.map.indexOf(this.own.high), here = this.map[this.placeOf(this.patchOf(at))];
    replace(this.scale, scaleBar(this.view.kind, this.limits, this.even));
    replace(this.words, `${this.asks}. Most: `, el("strong", null, this.name(most)), ` with ${number(this.own.high)}`,
      alike ? "." : `, ${compact(this.own.high / this.even)} times the even share (an even share is ${percent(this.even)})${almostUniform(this.view.kind, this.own, this.even) ? ": almost uniform" : ""}; the class token takes ${percent(prefixMass(this.rows, look.tokens, look.prefix, this.view.head))}.`,
      ` Under the cross: ${number(here)}.`);
    if (this.letter === "A") say(`${this.who}: most in ${this.name(most)}`);
  }

  // The content belongs to another model or volume: replaced by the reason.
  refuse(error) {
    this.clear();
    this.trouble.hidden = false;
    replace(this.trouble, el("strong", null, error.message), error.said?.hint ? el("p", null, error.said.hint) : null);
  }

  clear() {
    this.look = this.map = null;
    this.pictures.hidden = true;
    replace(this.scale);
    replace(this.words);
  }

  setLook(look, caption) {
    this.look = look;
    this.map = null;
    this.trouble.hidden = true;
    this.pictures.hidden = false;
    this.caption.hidden = !caption;
    this.caption.textContent = caption;
  }
}
