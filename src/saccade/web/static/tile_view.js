// Inside one tile of a slide: its patches and their attention, as the explorer has them.

import { json } from "./server_api.js";
import { el, replace } from "./dom.js";
import { ModelView } from "./model_view.js";
import { compact, where } from "./patch_maps.js";
import { latest } from "./latest_request.js";
import { Panel } from "./map_panel.js";

export class TileView {
  constructor(signal) {
    Object.assign(this, { signal, tile: null, asked: null, place: null, head: "mean", layer: null, drawings: latest() });
    this.node = el("section", { class: "card", "aria-label": "Inside the tile" });
    this.panel = new Panel("Attention inside the tile", {
      where: (place, columns) => `patch ${where(place, columns)}`,
      hover: (place) => { this.place = place; this.draw(); },
      head: (head) => { this.head = this.head === head ? "mean" : head; this.draw(); },
      pick: (place) => { this.asked = this.asked === place ? null : place; this.draw(); },
    });
  }

  // Content while no tile is selected.
  wait(...words) {
    this.tile = null;
    delete this.node.dataset.drawn;
    replace(this.node, words);
  }

  // about: {tile_px, mpp} of the slide; number of the tile on it
  async open(slide, about, number, model) {
    const tile = (this.tile = `${slide}/${number}/${model}`);
    delete this.node.dataset.drawn;
    try {
      const image = await json(`slides/${slide}/tile`, { number }, this.signal);
      const look = await ModelView.open({ model, image: image.id }, this.signal);
      if (this.tile !== tile || this.signal.aborted) return;
      const attentive = look.kind === "attention";
      this.asked = this.place = null;
      this.layer = look.depth - 1;
      if (this.head !== "mean" && this.head >= look.heads) this.head = "mean";
      this.panel.setLook(look, attentive ? "Attention of the class token, or of the patch under the pointer" : "Similarity of its patches");
      replace(this.node, el("h2", null, "Inside the tile"), el("p", { class: "soft" }, `${about.tile_px} pixels at ${compact(about.mpp)} µm`), this.panel.node,
        el("p", { class: "soft" }, attentive ? `Layer ${this.layer} of 0 to ${this.layer}.` : `${look.name} has no attention.`),
        el("a", { href: `#/attention?${new URLSearchParams({ image: image.id, a: model })}` }, "Every layer and head"));
      await this.draw();
    } catch (error) {
      if (!this.signal.aborted && this.tile === tile) replace(this.node, el("h2", null, "Inside the tile"), el("p", { class: "note", role: "alert" }, error.message));
    }
  }

  async draw() {
    const { look } = this.panel, { kind } = look, place = this.asked ?? this.place ?? null, still = this.drawings();
    const head = kind === "attention" ? this.head : "mean";
    const rows = await look.rows(kind, kind === "attention" ? this.layer : 0, place === null ? 0 : look.prefix + place, this.signal);
    if (!still()) return;
    this.panel.draw(rows, kind, { layer: this.layer, head, keep: 1, smooth: false, colour: false, place, pointed: null });
    this.node.dataset.drawn = "yes";
  }
}
