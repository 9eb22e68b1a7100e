// Runs: which there are, how they go, what they are worth.

import { json } from "./ask.js";
import { el } from "./dom.js";

export async function show(root, { signal }) {
  const runs = await json("runs", {}, signal);
  root.append(el("h1", null, "Runs"));
  if (!runs.length) root.append(el("p", null, "No run yet. saccade pretrain DATA --out RUN makes one."));
  root.append(el("ul", { class: "cards" }, runs.map((run) =>
    el("li", { class: "card" }, el("h2", null, run.name), el("p", null, run.headline)))));
}
