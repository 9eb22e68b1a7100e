// The content of a page while it loads: its heading, and what it is waiting for.

import { el, replace, say } from "./dom.js";

// A line that says what is being loaded; the caller removes it.
export function loadingText(words) {
  say(words);
  return el("span", { class: "soft waiting", role: "status" }, words);
}

export function showLoading(root, heading, words) {
  replace(root, el("h1", null, heading), el("p", null, loadingText(words)));
}
