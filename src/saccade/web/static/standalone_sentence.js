// A sentence with its numbers: the view of saccade view, without a server.

import { el } from "./dom.js";
import { block, weights } from "./embedded_data.js";
import { SentenceView } from "./sentence_view.js";
import { themes } from "./theme.js";

const { info, layers, look, orders, note, asked } = block();
const signal = new AbortController().signal;

// One layer is unpacked at a time; the view caches what it requested.
const layer = (number) => weights(layers[number], info.tokens.length);
const source = {
  info,
  note,
  layer,
  head: async (number, head) => {
    const all = await layer(number), size = info.tokens.length ** 2;
    if (head !== "mean") return all.subarray(head * size, (head + 1) * size);
    const mean = new Float32Array(size);
    for (let i = 0; i < all.length; i++) mean[i % size] += all[i] / info.heads;
    return mean;
  },
  pair: null, // the page holds weights, not vectors
  lookUp: async (token) => look[token] ?? null,
  order: orders.length ? async (seed) => orders[seed % orders.length] : null,
};

const root = document.getElementById("page"), button = el("button", { type: "button", class: "quiet noprint" });
themes(button);
const view = el("div", { class: "page page-sentences" });
root.append(el("header", { class: "row standalone" }, el("h1", null, "Attention between words"), button),
  el("p", { class: "said-text", dir: "auto" }, info.text), view);
const sentence = new SentenceView(view, signal);
Object.assign(sentence.state, asked);
sentence.open(source).then(() => { view.dataset.ready = "yes"; },
  (error) => view.append(el("p", { class: "note", role: "alert" }, error.message)));
