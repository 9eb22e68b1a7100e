// The map: a canvas of points, and one above it for the highlighted points; mouse, touch and keys.

import { el, replace, say } from "./dom.js";
import { Scatter } from "./scatter.js";

const STEP = 60, CLICK = 4;

function tokens() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(name).trim();
}

function rgb(hex) {
  const full = hex.length === 4 ? hex.replace(/[^#]/g, "$&$&") : hex;
  return [1, 3, 5].map((at) => parseInt(full.slice(at, at + 2), 16));
}

export class MapPlot {
  // events: hover(row | -1), pick(row), lasso(rows), card(row) -> what the card beside the pointer says
  constructor(signal, events) {
    this.scatter = new Scatter();
    this.events = events;
    this.mode = "move";
    this.hovered = -1;
    this.picked = -1;
    this.near = [];
    this.loop = null;
    this.pointers = new Map();
    this.above = el("canvas", {
      class: "above inked", tabindex: "0", role: "application",
      "aria-label": "Map of images. Arrow keys go from point to point, Enter shows what is like it, plus and minus zoom, 0 shows all.",
    });
    this.card = el("div", { class: "point-card", hidden: true });
    this.node = el("div", { class: "plot" }, this.scatter.canvas, this.above, this.card);
    this.listen(signal);
    const watch = new ResizeObserver(() => this.resize());
    watch.observe(this.node);
    document.addEventListener("theme", () => this.theme(), { signal });
    signal.addEventListener("abort", () => watch.disconnect());
    this.theme();
  }

  theme() {
    const token = tokens();
    this.scatter.ground = rgb(token("--card") || "#ffffff");
    this.ink = token("--ink");
    this.accent = token("--accent");
    this.redraw();
  }

  resize() {
    const { width, height } = this.node.getBoundingClientRect();
    if (!width || !height) return;
    const dots = Math.min(2, window.devicePixelRatio || 1);
    this.scatter.size(width, height, dots);
    this.above.width = Math.round(width * dots);
    this.above.height = Math.round(height * dots);
    this.redraw();
  }

  // Everything; at most once a frame.
  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      if (this.scatter.width) { this.scatter.draw(); this.mark(); }
    });
  }

  // Highlights only: neighbours, the selected and the hovered point, the lasso.
  mark() {
    const { scatter, above } = this, context = above.getContext("2d"), { dots } = scatter;
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.clearRect(0, 0, scatter.width, scatter.height);
    const ring = (i, radius, width, colour) => {
      const [x, y] = scatter.toScreen(i);
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    };
    const size = scatter.radius + 3;
    if (this.picked >= 0) {
      const [x, y] = scatter.toScreen(this.picked);
      context.globalAlpha = 0.55;
      for (const i of this.near) {
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(...scatter.toScreen(i));
        context.lineWidth = 1;
        context.strokeStyle = this.ink;
        context.stroke();
      }
      context.globalAlpha = 1;
    }
    for (const i of this.near) ring(i, size, 1.5, this.ink);
    if (this.picked >= 0) ring(this.picked, size + 2, 3, this.accent);
    if (this.hovered >= 0) ring(this.hovered, size + 1, 2, this.ink);
    if (this.loop) {
      context.beginPath();
      this.loop.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.setLineDash([5, 4]);
      context.lineWidth = 1.5;
      context.strokeStyle = this.accent;
      context.stroke();
      context.setLineDash([]);
      context.globalAlpha = 0.08;
      context.fillStyle = this.accent;
      context.fill();
      context.globalAlpha = 1;
    }
  }

  hover(i, spoken = false) {
    if (i !== this.hovered) {
      this.hovered = i;
      this.mark();
      this.events.hover(i);
    }
    if (i < 0) { this.card.hidden = true; return; }
    replace(this.card, this.events.card(i));
    this.card.hidden = false;
    const [x, y] = this.scatter.toScreen(i), { width, height } = this.scatter, box = this.card.getBoundingClientRect();
    const left = x + 16 + box.width > width ? x - 16 - box.width : x + 16;
    this.card.style.left = `${Math.max(4, left)}px`;
    this.card.style.top = `${Math.max(4, Math.min(height - box.height - 4, y - box.height / 2))}px`;
    if (spoken) say(this.card.textContent);
  }

  pick(i, near = []) {
    this.picked = i;
    this.near = near;
    this.mark();
  }

  // Scroll a point into view if it is outside.
  reveal(i) {
    const [x, y] = this.scatter.toScreen(i), { width, height } = this.scatter;
    if (x > 20 && y > 20 && x < width - 20 && y < height - 20) return;
    this.scatter.pan(width / 2 - x, height / 2 - y);
    this.redraw();
  }

  zoom(factor, x, y) {
    this.scatter.zoom(factor, x, y);
    this.card.hidden = true;
    this.redraw();
  }

  fit() { this.scatter.fit(); this.redraw(); }

  // --- mouse, touch, keys ---------------------------------------------------------------------

  listen(signal) {
    const on = (name, what, more) => this.above.addEventListener(name, what, { signal, ...more });
    const at = (event) => [event.offsetX, event.offsetY];
    on("pointerdown", (event) => {
      this.above.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
      if (this.pointers.size > 1) { this.loop = null; return; }
      this.down = at(event);
      this.moved = 0;
      if (this.mode === "lasso" || event.shiftKey) this.loop = [at(event)];
    });
    on("pointermove", (event) => this.move(event, at(event)));
    on("pointerup", (event) => this.up(event, at(event)));
    on("pointercancel", (event) => { this.pointers.delete(event.pointerId); this.loop = null; this.mark(); });
    on("pointerleave", () => { if (!this.pointers.size) this.hover(-1); });
    on("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
    }, { passive: false });
    on("keydown", (event) => this.key(event));
    on("blur", () => this.hover(-1));
  }

  move(event, [x, y]) {
    const before = this.pointers.get(event.pointerId);
    if (!before) { this.hover(this.scatter.at(x, y)); return; }
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const was = Math.hypot(before[0] - other[0], before[1] - other[1]), is = Math.hypot(x - other[0], y - other[1]);
      if (was > 0) this.zoom(is / was, other[0], other[1]);
      this.pointers.set(event.pointerId, [x, y]);
      this.moved = CLICK + 1;
      return;
    }
    this.moved = Math.max(this.moved, Math.hypot(x - this.down[0], y - this.down[1]));
    if (this.loop) {
      this.loop.push([x, y]);
      this.mark();
    } else if (this.moved > CLICK) {
      this.scatter.pan(x - before[0], y - before[1]);
      this.card.hidden = true;
      this.redraw();
    }
    this.pointers.set(event.pointerId, [x, y]);
  }

  up(event, [x, y]) {
    const alone = this.pointers.size === 1;
    this.pointers.delete(event.pointerId);
    const loop = this.loop;
    this.loop = null;
    if (alone && this.moved <= CLICK) {
      const found = this.scatter.at(x, y);
      if (found >= 0) this.events.pick(found);
    } else if (alone && loop && loop.length > 2) {
      this.events.lasso(this.scatter.inside(loop));
    }
    this.mark();
  }

  key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (way && event.shiftKey) {
      this.scatter.pan(-way[0] * STEP, -way[1] * STEP);
      this.redraw();
    } else if (way) {
      const next = this.scatter.step(this.hovered >= 0 ? this.hovered : this.picked, ...way);
      if (next >= 0) this.hover(next, true);
    } else if (event.key === "Enter" && this.hovered >= 0) this.events.pick(this.hovered);
    else if (event.key === "+" || event.key === "=") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else if (event.key === "0") this.fit();
    else if (event.key === "Escape") { this.hover(-1); this.events.lasso([]); }
    else return;
    event.preventDefault();
  }
}
