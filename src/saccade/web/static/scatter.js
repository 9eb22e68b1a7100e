// Points of a plane on a canvas, painted pixel by pixel: a hundred thousand stay fluid without WebGL.
// Every value has a colour and a shape; the shape grows readable as one comes nearer.

// Outlines in units of the radius; holes by the even-odd rule.
export const SHAPES = {
  disc: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
  square: "M-.82-.82H.82V.82H-.82Z",
  triangle: "M0-1.05L1.07.8H-1.07Z",
  diamond: "M0-1.12L1.12 0L0 1.12L-1.12 0Z",
  cross: "M0-.36L.59-.95H.95V-.59L.36 0L.95.59V.95H.59L0 .36L-.59.95H-.95V.59L-.36 0L-.95-.59V-.95H-.59Z",
  ring: "M1.05 0A1.05 1.05 0 1 1-1.05 0A1.05 1.05 0 1 1 1.05 0ZM.52 0A.52 .52 0 1 1-.52 0A.52 .52 0 1 1 .52 0Z",
  plus: "M-.28-1.05H.28V-.28H1.05V.28H.28V1.05H-.28V.28H-1.05V-.28H-.28Z",
  frame: "M-.9-.9H.9V.9H-.9ZM-.45-.45H.45V.45H-.45Z",
  wedge: "M0 1.05L1.07-.8H-1.07Z",
  bar: "M-1.1-.42H1.1V.42H-1.1Z",
  hollow: "M0-1.25L1.25 0L0 1.25L-1.25 0ZM0-.6L.6 0L0 .6L-.6 0Z",
  pillar: "M-.42-1.1H.42V1.1H-.42Z",
};

// The pixels of a shape: those that it covers whole, and those at its edge with their coverage in 0..1,
// antialiased by 4 x 4 samples. A crowd of small points has no soft edges: they would cost more than they show.
const stamps = new Map();
function stamp(shape, radius, soft) {
  const key = `${shape}/${radius.toFixed(1)}/${soft}`;
  if (stamps.has(key)) return stamps.get(key);
  const judge = new OffscreenCanvas(1, 1).getContext("2d"), path = new Path2D(SHAPES[shape]);
  const reach = Math.ceil(radius * 1.3), whole = [], edge = [];
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      let hits = 0;
      for (let s = 0; s < 16; s++) {
        const sx = x + ((s % 4) + 0.5) / 4 - 0.5, sy = y + (Math.floor(s / 4) + 0.5) / 4 - 0.5;
        if (judge.isPointInPath(path, sx / radius, sy / radius, "evenodd")) hits++;
      }
      if (hits === 16 || (!soft && hits > 7)) whole.push([x, y]);
      else if (soft && hits) edge.push([x, y, hits / 16]);
    }
  }
  if (stamps.size > 400) stamps.clear();
  const made = { reach, whole, edge };
  stamps.set(key, made);
  return made;
}

// A cheap, fixed shuffle: no class may always be painted over the others.
function shuffled(count) {
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[i] = i;
  let state = 12345;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = state % (i + 1), kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }
  return order;
}

const packed = (r, g, b) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;

function blend(pixels, at, { edge, cover, rgb: [r, g, b] }) {
  for (let s = 0; s < edge.length; s++) {
    const place = at + edge[s], under = pixels[place], share = cover[s];
    const ur = under & 255, ug = (under >> 8) & 255, ub = (under >> 16) & 255;
    pixels[place] = 0xff000000 | ((ub + (b - ub) * share) << 16) | ((ug + (g - ug) * share) << 8) | (ur + (r - ur) * share);
  }
}

export class Scatter {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "inked";
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.count = 0;
    this.places = new Float32Array(0);
    this.codes = new Uint16Array(0);
    this.looks = [];
    this.ground = [255, 255, 255];
    this.hidden = new Uint8Array(0);
    this.chosen = null;
    this.view = { scale: 1, x: 0, y: 0 };
  }

  // Where the points lie; keeps colours. The view is reset to show them all.
  setPlaces(places) {
    this.places = places;
    if (this.count !== places.length / 2) {
      this.count = places.length / 2;
      this.order = shuffled(this.count);
      this.codes = new Uint16Array(this.count);
      this.hidden = new Uint8Array(this.count);
      this.chosen = null;
    }
    this.box = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i < places.length; i += 2) {
      this.box[0] = Math.min(this.box[0], places[i]); this.box[1] = Math.min(this.box[1], places[i + 1]);
      this.box[2] = Math.max(this.box[2], places[i]); this.box[3] = Math.max(this.box[3], places[i + 1]);
    }
    this.bins = null;
    this.fit();
  }

  size(width, height, dots) {
    this.dots = dots;
    const wide = Math.max(1, Math.round(width * dots)), high = Math.max(1, Math.round(height * dots));
    if (this.canvas.width === wide && this.canvas.height === high) return;
    const middle = this.width ? this.toPlane(this.width / 2, this.height / 2) : null, before = Math.min(this.width ?? 1, this.height ?? 1);
    this.width = width;
    this.height = height;
    this.canvas.width = wide;
    this.canvas.height = high;
    this.image = this.context.createImageData(wide, high);
    this.pixels = new Uint32Array(this.image.data.buffer);
    if (!middle) { this.fit(); return; }
    this.view.scale *= Math.min(width, height) / before;
    this.view.x = width / 2 - middle[0] * this.view.scale;
    this.view.y = height / 2 + middle[1] * this.view.scale;
  }

  fit() {
    if (!this.count || !this.width) return;
    const [left, low, right, high] = this.box, room = 0.92;
    const scale = Math.min((this.width * room) / (right - left || 1), (this.height * room) / (high - low || 1));
    this.whole = scale;
    this.view = { scale, x: this.width / 2 - ((left + right) / 2) * scale, y: this.height / 2 + ((low + high) / 2) * scale };
  }

  toScreen(i) {
    return [this.places[2 * i] * this.view.scale + this.view.x, this.view.y - this.places[2 * i + 1] * this.view.scale];
  }

  toPlane(x, y) { return [(x - this.view.x) / this.view.scale, (this.view.y - y) / this.view.scale]; }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const bounded = Math.min(this.whole * 2000, Math.max(this.whole * 0.4, this.view.scale * factor));
    const real = bounded / this.view.scale;
    this.view = { scale: bounded, x: x - (x - this.view.x) * real, y: y - (y - this.view.y) * real };
  }

  pan(x, y) { this.view.x += x; this.view.y += y; }

  // Radius of a point in CSS pixels: smaller where there are many, larger as one comes nearer.
  get radius() {
    const crowd = this.count > 50_000 ? 1.5 : this.count > 10_000 ? 2.1 : this.count > 2_000 ? 3.2 : 4.6;
    return Math.min(8, crowd * Math.pow(Math.max(1, this.view.scale / (this.whole || 1)), 0.4));
  }

  draw() {
    const { pixels, canvas: { width, height }, places, codes, hidden, chosen, dots, order } = this;
    const [gr, gg, gb] = this.ground;
    pixels.fill(packed(gr, gg, gb));
    const count = this.looks.length ? this.count : 0;  // places may be there before colours are
    const scale = this.view.scale * dots, left = this.view.x * dots, top = this.view.y * dots;
    const brushes = this.brushes(1), faint = chosen ? this.brushes(0.22) : null;
    const reach = Math.max(1, ...brushes.map((brush) => brush.reach));
    for (let pass = chosen ? 0 : 1; pass < 2; pass++) {  // with a selection, the others come first and faint
      const looks = pass ? brushes : faint;
      for (let n = 0; n < count; n++) {
        const i = order[n];
        if (hidden[i] || (chosen && chosen[i] !== pass)) continue;
        const px = Math.round(places[2 * i] * scale + left), py = Math.round(top - places[2 * i + 1] * scale);
        if (px < reach || py < reach || px >= width - reach || py >= height - reach) continue;
        const brush = looks[codes[i]], at = py * width + px, { whole, colour } = brush;
        for (let s = 0; s < whole.length; s++) pixels[at + whole[s]] = colour;
        if (brush.edge.length) blend(pixels, at, brush);
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }

  // For every look its pixels as distances from the middle one, and its colour; a faint one is mixed with the ground.
  brushes(strength) {
    const { width } = this.canvas, radius = this.radius * this.dots, soft = this.count <= 30_000 || radius > 3;
    return this.looks.map(({ shape, rgb }) => {
      const { reach, whole, edge } = stamp(shape, radius, soft);
      const mixed = rgb.map((value, c) => Math.round(this.ground[c] + (value - this.ground[c]) * strength));
      return {
        reach: reach + 1, rgb: mixed, colour: packed(...mixed), whole: Int32Array.from(whole, ([x, y]) => y * width + x),
        edge: Int32Array.from(edge, ([x, y]) => y * width + x), cover: Float32Array.from(edge, ([, , share]) => share),
      };
    });
  }

  // --- finding points --------------------------------------------------------------------------

  // Points by cells of a grid over the plane, so that the mouse finds its neighbour without looking at all.
  index() {
    const side = Math.max(1, Math.min(512, Math.round(Math.sqrt(this.count / 2))));
    const [left, low, right, high] = this.box, sx = side / (right - left || 1), sy = side / (high - low || 1);
    const cell = (i) => Math.min(side - 1, Math.floor((this.places[2 * i] - left) * sx)) * side
      + Math.min(side - 1, Math.floor((this.places[2 * i + 1] - low) * sy));
    const starts = new Uint32Array(side * side + 1), items = new Uint32Array(this.count);
    for (let i = 0; i < this.count; i++) starts[cell(i) + 1]++;
    for (let c = 0; c < side * side; c++) starts[c + 1] += starts[c];
    const next = starts.slice();
    for (let i = 0; i < this.count; i++) items[next[cell(i)]++] = i;
    this.bins = { side, sx, sy, starts, items };
  }

  // The visible point nearest to a place on the screen, within so many pixels; -1 where there is none.
  at(x, y, within = 14) {
    if (!this.count) return -1;
    if (!this.bins) this.index();
    const { side, sx, sy, starts, items } = this.bins, [left, low] = this.box;
    const reach = within / this.view.scale, [mx, my] = this.toPlane(x, y);
    const clamp = (v) => Math.max(0, Math.min(side - 1, Math.floor(v)));
    let best = -1, least = within * within;
    for (let cx = clamp((mx - reach - left) * sx); cx <= clamp((mx + reach - left) * sx); cx++) {
      for (let cy = clamp((my - reach - low) * sy); cy <= clamp((my + reach - low) * sy); cy++) {
        for (let n = starts[cx * side + cy]; n < starts[cx * side + cy + 1]; n++) {
          const i = items[n];
          if (this.hidden[i]) continue;
          const [px, py] = this.toScreen(i), d = (px - x) ** 2 + (py - y) ** 2;
          if (d < least || (d === least && best < 0)) { least = d; best = i; }
        }
      }
    }
    return best;
  }

  // The next visible point from point i in a direction of the screen: near, and not far to the side.
  step(i, dx, dy) {
    const [x, y] = i < 0 ? [this.width / 2, this.height / 2] : this.toScreen(i);
    let best = -1, least = Infinity;
    for (let j = 0; j < this.count; j++) {
      if (j === i || this.hidden[j]) continue;
      const [px, py] = this.toScreen(j);
      if (px < 0 || py < 0 || px > this.width || py > this.height) continue;
      const ahead = (px - x) * dx + (py - y) * dy, aside = Math.abs((px - x) * dy - (py - y) * dx);
      if (i >= 0 && (ahead <= 0.5 || aside > ahead * 1.5)) continue;
      const cost = i < 0 ? Math.hypot(px - x, py - y) : ahead + 2 * aside;
      if (cost < least) { least = cost; best = j; }
    }
    return best;
  }

  inView(i) {
    const [x, y] = this.toScreen(i);
    return !this.hidden[i] && x >= 0 && y >= 0 && x <= this.width && y <= this.height;
  }

  // The visible points inside a polygon of the screen, by the even-odd rule.
  inside(polygon) {
    const found = [];
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (const [x, y] of polygon) {
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    for (let i = 0; i < this.count; i++) {
      if (this.hidden[i]) continue;
      const [x, y] = this.toScreen(i);
      if (x < left || x > right || y < top || y > bottom) continue;
      let odd = false;
      for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
        const [ax, ay] = polygon[a], [bx, by] = polygon[b];
        if ((ay > y) !== (by > y) && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
      }
      if (odd) found.push(i);
    }
    return found;
  }
}
