// Query, key and value: all numbers of one query patch and one key patch.

import { el, replace, svg } from "./dom.js";
import { compact, percent } from "./patch_maps.js";

// The numbers of a vector as bars around a line; all strips of one figure share a scale where they can be compared.
function strip(values, name, scale) {
  const width = 320, height = 44, wide = width / values.length;
  const most = scale ?? Math.max(...values.map(Math.abs), 1e-12);
  const bars = values.map((value, i) => {
    const long = Math.min(1, Math.abs(value) / most) * (height / 2 - 2);
    return svg("rect", {
      x: (i * wide).toFixed(2), width: Math.max(0.5, wide - 0.6).toFixed(2), height: long.toFixed(2),
      y: (value >= 0 ? height / 2 - long : height / 2).toFixed(2), class: value >= 0 ? "plus" : "minus",
    });
  });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": name, class: "strip" },
    svg("line", { x1: 0, x2: width, y1: height / 2, y2: height / 2, class: "axis" }), bars);
}

function line(word, meaning, drawing, number) {
  return el("div", { class: "vector" },
    el("div", null, el("strong", null, word), " ", el("span", { class: "soft" }, meaning)),
    drawing, number ? el("div", { class: "code" }, number) : null);
}

export function explainNothing(root, text) {
  replace(root, el("h2", null, "Query, key, value"), el("p", { class: "soft" }, text));
}

// pair: as the server gives it; names: {query, key, layer, head}
export function explain(root, pair, names, note) {
  const width = pair.query.length;
  const most = Math.max(...pair.query.map(Math.abs), ...pair.key.map(Math.abs));
  const long = Math.hypot(...pair.value);
  replace(root,
    el("h2", null, "Query, key, value"),
    el("p", { class: "soft" }, `Layer ${names.layer}, head ${names.head}. ${note ?? ""}`),
    line("Query", `what ${names.query} asks`, strip(pair.query, `query, ${width} numbers`, most)),
    line("Key", `what ${names.key} offers`, strip(pair.key, `key, ${width} numbers`, most)),
    line("Query × key", "number by number; their sum is the dot product", strip(pair.products, "products"),
      `q·k = ${compact(pair.dot)}`),
    el("ol", { class: "steps" },
      el("li", null, "Divided by the square root of the width: ",
        el("span", { class: "code", "data-step": "score" },
          `q·k/√d = ${compact(pair.dot)} / √${width} = ${compact(pair.score)}`)),
      el("li", null, `Softmax over ${pair.visible < pair.tokens ? `the ${pair.visible} keys that this query sees` : `all ${pair.tokens} keys`} (largest score ${compact(pair.largest)}): `,
        el("span", { class: "code", "data-step": "weight" },
          `e^(${compact(pair.score)} − ${compact(pair.largest)}) / ${compact(pair.total)} = ${compact(pair.weight)}`)),
      el("li", null, el("strong", null, percent(pair.weight)),
        ` of what this query takes; ${pair.rank === 0 ? "no key has more" : pair.rank === 1 ? "1 key has more" : `${pair.rank} keys have more`}. `,
        `An even share would be ${percent(1 / pair.visible)}.`)),
    line("Value", `what ${names.key} hands over, times ${compact(pair.weight)}`, strip(pair.value, "value"),
      `length ${compact(long)} × ${compact(pair.weight)} = ${compact(long * pair.weight)}`));
}
