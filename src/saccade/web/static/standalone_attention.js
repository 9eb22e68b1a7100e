// Selected images with their attention: the explorer of saccade view, without a server.

import { el } from "./dom.js";
import { said } from "./embedded_api.js";
import { show } from "./attention.js";
import { themes } from "./theme.js";

const root = document.getElementById("page"), button = el("button", { type: "button", class: "quiet noprint" });
themes(button);
const view = el("div", { class: "page page-attention" });
root.append(el("header", { class: "row standalone" }, el("p", { class: "soft" }, said), button), view);
show(view, { query: new URLSearchParams(), signal: new AbortController().signal, go: () => {} }).then(
  () => { view.dataset.ready = "yes"; },
  (error) => view.prepend(el("p", { class: "note", role: "alert" }, error.message)));
