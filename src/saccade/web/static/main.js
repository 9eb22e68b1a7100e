// The shell: navigation by the part of the address after #, one page at a time, light and dark.

import { el, replace } from "./dom.js";
import { PAGES } from "./pages.js";
import { themes } from "./theme.js";

let leaving = new AbortController();

export function go(page, query) {
  const words = new URLSearchParams(query ?? {}).toString();
  location.hash = `/${page}${words ? `?${words}` : ""}`;
}

function place() {
  const [path, words] = location.hash.replace(/^#\/?/, "").split("?");
  return { page: PAGES.find((one) => one.id === path) ?? PAGES[0], query: new URLSearchParams(words ?? "") };
}

function trouble(error) {
  const said = error.said ?? {};
  return el("div", { class: "note", role: "alert" },
    el("strong", null, error.message),
    said.got ? el("p", null, `got: ${said.got}`) : null,
    said.expected ? el("p", null, `expected: ${said.expected}`) : null,
    said.hint ? el("p", null, `hint: ${said.hint}`) : null);
}

async function open() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const { page, query } = place();
  const root = document.getElementById("page");
  document.title = `${page.title} · saccade`;
  for (const link of document.querySelectorAll("#pages a")) {
    link.toggleAttribute("aria-current", link.dataset.page === page.id);
    if (link.dataset.page === page.id) link.setAttribute("aria-current", "page");
  }
  const view = el("div", { class: `page page-${page.id}` });
  replace(root, view);
  try {
    const module = await page.load();
    if (!signal.aborted) await module.show(view, { query, signal, go });
    view.dataset.ready = "yes";
  } catch (error) {
    if (signal.aborted) return;
    for (const line of view.querySelectorAll(".waiting")) line.remove();
    view.prepend(trouble(error));
  }
}

// The token has become a cookie; in the address it could be copied along with a link.
if (location.search) history.replaceState(null, "", location.pathname + location.hash);
replace(document.getElementById("pages"),
  PAGES.map((page) => el("a", { href: `#/${page.id}`, "data-page": page.id }, page.title)));
themes(document.getElementById("theme"));
addEventListener("hashchange", open);
open();
