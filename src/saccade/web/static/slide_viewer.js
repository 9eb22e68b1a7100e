// A slide to zoom into (OpenSeadragon, BSD-3) under a heatmap over cells of its lattice, with outlines of what is chosen.

import { link } from "./server_api.js";
import { el, replace } from "./dom.js";
import { mapPixels, range } from "./patch_maps.js";

// The heat over cells [[row, column], ...] of sides [down, across] in pixels of level 0; NaN is not painted.
export function heatmapOf(cells, step, values, limits) {
  const kept = cells.map((cell, i) => [cell, i]).filter(([, i]) => Number.isFinite(values[i]));
  if (!kept.length) return null;
  const down = range(kept.map(([[row]]) => row)), over = range(kept.map(([[, column]]) => column)); // too many for Math.min(...)
  const top = down.low, left = over.low, rows = down.high - top + 1, columns = over.high - left + 1;
  const data = mapPixels(values, limits), pixels = new Uint8ClampedArray(4 * rows * columns);
  for (const [[row, column], i] of kept) {
    const at = 4 * ((row - top) * columns + column - left);
    pixels.set(data.subarray(4 * i, 4 * i + 3), at);
    pixels[at + 3] = 255;
  }
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  small.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
  return { small, box: [left * step[1], top * step[0], columns * step[1], rows * step[0]] };
}

export class SlideViewer {
  // events: {click(x, y), hover(x, y) | hover(null), key(event) -> whether it was taken}; x, y in pixels of level 0
  constructor(signal, label, events) {
    this.node = el("div", { class: "stage", role: "application", "aria-label": label, tabindex: "0" });
    this.canvas = el("canvas", { class: "heat", "aria-hidden": "true" });
    Object.assign(this, { events, heat: null, marks: [], opacity: 0.55 });
    signal.addEventListener("abort", () => this.viewer?.destroy());
    // Before the viewer sees a key: it would move the slide.
    this.node.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || !events.key?.(event)) return;
      event.preventDefault();
      event.stopPropagation();
    }, { capture: true });
    if (events.hover) {
      this.node.addEventListener("pointermove", (event) => {
        if (!this.viewer?.world.getItemCount()) return;
        const box = this.node.getBoundingClientRect(), at = this.slideAt({ x: event.clientX - box.left, y: event.clientY - box.top });
        events.hover(at.x, at.y);
      });
      this.node.addEventListener("pointerleave", () => events.hover(null));
    }
  }

  static async load() {
    if (window.OpenSeadragon) return;
    // OpenSeadragon would write a style sheet that hides the focus on touch screens, which our policy refuses. It looks for an
    // element of this name and mark first; one without a namespace is found and is no style sheet.
    const mark = document.createElementNS(null, "style");
    mark.setAttribute("data-openseadragon-mobile-css", "true");
    document.head.append(mark);
    await new Promise((done, failed) => document.head.append(el("script", { src: "/static/vendor/openseadragon/openseadragon.js",
      onload: done, onerror: () => failed(new Error("OpenSeadragon did not load")) })));
  }

  // about: {size_px, zoom_px, levels} of the slide with this id
  open(id, { size_px: [height, width], zoom_px: side, levels }) {
    this.viewer?.destroy();
    replace(this.node);
    delete this.node.dataset.drawn;
    this.viewer = window.OpenSeadragon({
      element: this.node, drawer: "canvas", showNavigationControl: false, showNavigator: false, immediateRender: true, animationTime: 0.4,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false }, maxZoomPixelRatio: 4,
      tileSources: { width, height, tileSize: side, tileOverlap: 0, minLevel: 0, maxLevel: levels,
        getTileUrl: (level, x, y) => link(`slides/${id}/zoom/${level}/${x}/${y}`) },
    });
    this.viewer.canvas.tabIndex = -1; // the stage itself has the name and the keys
    this.node.append(this.canvas);
    this.viewer.addHandler("open", () => this.viewer.viewport.goHome(true));
    for (const name of ["update-viewport", "resize"]) this.viewer.addHandler(name, () => this.paint());
    this.viewer.addHandler("tile-drawn", () => { this.node.dataset.drawn = "yes"; });
    this.viewer.addHandler("canvas-click", ({ quick, position }) => {
      if (!quick) return;
      const at = this.slideAt(position);
      this.events.click(at.x, at.y);
    });
  }

  slideAt({ x, y }) {
    return this.viewer.viewport.viewerElementToImageCoordinates(new window.OpenSeadragon.Point(x, y));
  }

  // marks: [{box: [x, y, width, height], inner: colour, thin: a hairline}, ...]
  show(heat, marks) {
    Object.assign(this, { heat, marks });
    this.paint();
  }

  fade(opacity) {
    this.opacity = opacity;
    this.paint();
  }

  home() { this.viewer?.viewport.goHome(); }

  // Brings a box of level 0 into view, with half of it around.
  goTo([x, y, width, height]) {
    if (!this.viewer?.world.getItemCount()) return;
    const { viewport } = this.viewer;
    viewport.fitBounds(viewport.imageToViewportRectangle(x - width / 4, y - height / 4, 1.5 * width, 1.5 * height));
  }

  paint() {
    const { canvas, viewer } = this, dots = devicePixelRatio || 1, size = this.node.getBoundingClientRect();
    canvas.width = Math.round(size.width * dots);
    canvas.height = Math.round(size.height * dots);
    if (!viewer?.world.getItemCount()) return;
    const context = canvas.getContext("2d");
    const place = ([x, y, width, height]) => {
      const from = viewer.viewport.imageToViewerElementCoordinates(new window.OpenSeadragon.Point(x, y));
      const to = viewer.viewport.imageToViewerElementCoordinates(new window.OpenSeadragon.Point(x + width, y + height));
      return [from.x, from.y, to.x - from.x, to.y - from.y];
    };
    context.scale(dots, dots);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = this.opacity;
    if (this.heat) context.drawImage(this.heat.small, ...place(this.heat.box));
    context.globalAlpha = 1;
    for (const { box, inner, thin } of this.marks) {
      for (const [style, line] of thin ? [["rgb(255 255 255 / 0.7)", 1]] : [["#000000", 5], [inner ?? "#ffffff", 2.5]]) {
        context.strokeStyle = style;
        context.lineWidth = line;
        context.strokeRect(...place(box));
      }
    }
  }
}
