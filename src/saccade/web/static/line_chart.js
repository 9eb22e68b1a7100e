// A line chart of several runs: axes with whole steps, lines distinguished by colour and dashes, values at the pointer.

import { el, svg } from "./dom.js";
import { compact } from "./patch_maps.js";

const WIDTH = 420, HEIGHT = 210, LEFT = 48, RIGHT = 10, TOP = 10, BOTTOM = 26, MOST = 600;
export const DASHES = ["", "7 4", "2 3", "10 3 2 3", "1 5", "14 4"];

function steps(low, high, count) {
  const rough = (high - low) / count || 1, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((by) => by * size).find((by) => by >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}

// Every n-th point and the last one: more points than the screen has columns are invisible.
function thinned(points) {
  const by = Math.max(1, Math.ceil(points.length / MOST));
  return points.filter((_, i) => i % by === 0 || i === points.length - 1);
}

export function key(series) {
  return el("ul", { class: "key" }, series.map(({ name, index }) => el("li", null,
    svg("svg", { viewBox: "0 0 40 12", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 40, y1: 6, y2: 6,
      class: `series s${(index % 6) + 1}`, "stroke-dasharray": DASHES[index % 6] })), name)));
}

// series: [{name, index, points: [[x, y], ...]}]
export function chart(title, series, note) {
  const drawn = series.map((one) => ({ ...one, points: thinned(one.points) })).filter(({ points }) => points.length);
  const all = drawn.flatMap(({ points }) => points);
  const [x0, x1] = [Math.min(...all.map(([x]) => x)), Math.max(...all.map(([x]) => x))];
  let [y0, y1] = [Math.min(...all.map(([, y]) => y)), Math.max(...all.map(([, y]) => y))];
  if (y1 - y0 < 1e-12) { y0 -= Math.abs(y0) * 0.05 || 0.5; y1 += Math.abs(y1) * 0.05 || 0.5; }
  const x = (value) => LEFT + ((value - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const grid = [
    ...steps(y0, y1, 4).map((at) => [svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at), class: "grid" }),
      svg("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, compact(at))]),
    ...steps(x0, x1, 4).map((at) => svg("text", { x: x(at), y: HEIGHT - 8, "text-anchor": "middle" }, at.toLocaleString("en"))),
  ];
  const lines = drawn.map(({ points, index }) => points.length === 1
    ? svg("circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: 3, class: `dot s${(index % 6) + 1}` })
    : svg("path", { class: `series s${(index % 6) + 1}`, "stroke-dasharray": DASHES[index % 6],
      d: points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("") }));
  const rule = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "rule", visibility: "hidden" });
  const reading = el("p", { class: "reading soft" }, note ?? " ");
  const words = drawn.map(({ name, points }) => `${name} ends at ${compact(points.at(-1)[1])}`).join("; ");
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${words}` }, grid, lines, rule);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = x0 + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (x1 - x0);
    const nearest = drawn.map(({ name, points }) => {
      const point = points.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best));
      return { name, point };
    });
    rule.setAttribute("x1", x(nearest[0].point[0]));
    rule.setAttribute("x2", x(nearest[0].point[0]));
    rule.setAttribute("visibility", "visible");
    reading.textContent = `step ${nearest[0].point[0].toLocaleString("en")}: ` +
      nearest.map(({ name, point }) => (drawn.length > 1 ? `${name} ` : "") + compact(point[1])).join(", ");
  });
  drawing.addEventListener("pointerleave", () => { rule.setAttribute("visibility", "hidden"); reading.textContent = note ?? " "; });
  return el("figure", { class: "chart" }, el("figcaption", null, title), drawing, reading);
}
