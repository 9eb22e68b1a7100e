// Colours, shapes and the legend of the map: values differ by shape too, and can be hidden or shown alone.

import { el, svg } from "./dom.js";
import { SHAPES } from "./scatter.js";

const SHAPE = Object.keys(SHAPES);
const LIGHT = ["#24619e", "#b4541a", "#0a7d60", "#8147e6", "#8a1f4b", "#6b6f1d", "#c2348f", "#0e8ca8", "#5b3a1e", "#3b3f45", "#b08900"];
const DARK = ["#6aa9f0", "#f08a4b", "#5fd0b0", "#b98bff", "#ff7fa8", "#d9dd74", "#ff8ee0", "#58d3ee", "#d3a17c", "#e4e5e6", "#f2c230"];
const REST = { light: "#9a9ea4", dark: "#6d737a" };
export const NAMED = LIGHT.length;

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
export const isDark = () => getComputedStyle(document.documentElement).colorScheme.trim() === "dark";

// Colour and shape of the first values; all others share the last.
export function looks(count) {
  const palette = isDark() ? DARK : LIGHT, rest = rgb(isDark() ? REST.dark : REST.light);
  const named = palette.slice(0, Math.min(count, NAMED)).map((hex, n) => ({ rgb: rgb(hex), shape: SHAPE[n] }));
  return count > NAMED ? [...named, { rgb: rest, shape: SHAPE[NAMED] }] : named;
}

export function symbol(look) {
  return svg("svg", { viewBox: "-1.4 -1.4 2.8 2.8", width: 16, height: 16, "aria-hidden": "true", class: "symbol" },
    svg("path", { d: SHAPES[look.shape], "fill-rule": "evenodd", fill: `rgb(${look.rgb})` }));
}

export const named = (value) => (value === "" ? "not known" : value);

// values, counts: of the column; hidden: set of looks; change(look, "toggle" | "only")
export function legend({ values, counts, hidden, change }) {
  const all = looks(values.length);
  return el("ul", { class: "legend" }, all.map((look, n) => {
    const others = n === NAMED;
    const text = others ? `${values.length - NAMED} others` : named(values[n]);
    const count = others ? counts.slice(NAMED).reduce((a, b) => a + b, 0) : counts[n];
    return el("li", null,
      el("button", { type: "button", class: "entry", "aria-pressed": hidden.has(n) ? "false" : "true", title: `Show or hide ${text}`, onclick: () => change(n, "toggle") },
        symbol(look), el("span", { class: "name" }, text), el("span", { class: "count" }, count.toLocaleString("en"))),
      el("button", { type: "button", class: "quiet only", "aria-label": `Show only ${text}`, onclick: () => change(n, "only") }, "only"));
  }));
}
