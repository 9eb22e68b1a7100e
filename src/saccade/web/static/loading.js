// What stands on a page until its answers are there: the heading at once, and in words what is waited for.

import { el, replace, say } from "./dom.js";

// A line that says what is waited for; whoever waits takes it away, or draws over it.
export function loadingText(words) {
  say(words);
  return el("span", { class: "soft waiting", role: "status" }, words);
}

export function showLoading(root, heading, words) {
  replace(root, el("h1", null, heading), el("p", null, loadingText(words)));
}
