// Choosing an image: from a run's data, page by page, or from a file, which stays in the server's memory.
// chosen: {run, start, image} to begin with, and held: that image where it is in no run; lost: none is chosen to begin with;
// files: false where none can be opened, accept: which (images unless given)

import { json, link, live, upload } from "./server_api.js";
import { el, field, replace, say, select } from "./dom.js";
import { latest } from "./latest_request.js";

export const A_PAGE = 24;

export function chooser(context, runs, chosen, onchoose) {
  const { signal } = context;
  const thumbs = el("div", { class: "thumbs", role: "listbox", "aria-label": "Images", tabindex: "0" });
  const count = el("span", { class: "soft" });
  const trouble = el("p", { class: "note", role: "alert", hidden: true });
  const earlier = el("button", { type: "button", "aria-label": "Earlier images", onclick: () => turn(-A_PAGE) }, "‹");
  const later = el("button", { type: "button", "aria-label": "Later images", onclick: () => turn(A_PAGE) }, "›");
  const pages = latest();
  const state = { run: chosen.run ?? runs[0]?.id, start: chosen.start ?? 0, total: 0, image: chosen.image, uploads: chosen.held ? [chosen.held] : [] };

  const file = el("input", { type: "file", class: "visually-hidden", accept: chosen.accept ?? "image/*,.tif,.tiff", tabindex: "-1",
    "aria-label": chosen.accept ? "Volume file" : "Image file" });
  file.addEventListener("change", () => { if (file.files[0]) take(file.files[0]); file.value = ""; });
  const add = el("button", { type: "button", onclick: () => file.click() }, "Open a file …");

  async function take(chosenFile) {
    hide();
    try {
      const found = await upload(chosenFile, signal);
      state.uploads.unshift({ ...found, label: null });
      await show();
      choose(found);
    } catch (error) { complain(error); }
  }

  function complain(error) {
    if (signal.aborted) return;
    trouble.hidden = false;
    replace(trouble, error.message, error.said?.hint ? ` ${error.said.hint}` : "");
  }
  function hide() { trouble.hidden = true; }

  function choose(image) {
    state.image = image.id;
    for (const node of thumbs.children) node.setAttribute("aria-selected", node.dataset.id === image.id);
    say(`${image.name} chosen`);
    onchoose({ ...image, run: state.run, start: state.start });
  }

  function turn(by) {
    state.start = Math.max(0, Math.min(state.start + by, Math.floor((state.total - 1) / A_PAGE) * A_PAGE));
    show().catch(complain);
  }

  function other(run) {
    Object.assign(state, { run, start: 0 });
    earlier.disabled = later.disabled = true; // until their number is known
    hide();
    show().catch(complain);
  }

  function thumb(image) {
    const words = image.label ? `${image.name}, ${image.label}` : image.name;
    return el("button", {
      type: "button", role: "option", title: words, "aria-label": words, "data-id": image.id,
      "aria-selected": image.id === state.image, onclick: () => choose(image),
    }, el("img", { src: link(`images/${image.id}/small`, { side: 128 }), alt: "", loading: "lazy", width: 64, height: 64 }));
  }

  async function show() {
    const still = pages();
    const found = state.run ? await json("images", { run: state.run, start: state.start, count: A_PAGE }, signal)
      : { total: 0, images: [] };
    if (!still()) return found.images;
    state.total = found.total;
    replace(thumbs, [...state.uploads, ...found.images].map(thumb));
    const last = Math.min(found.total, state.start + A_PAGE);
    replace(count, found.total ? `${state.start + 1} to ${last} of ${found.total.toLocaleString("en")}` : "");
    earlier.disabled = state.start === 0;
    later.disabled = last >= found.total;
    return found.images;
  }

  // Arrow keys walk through the pictures, as in any list.
  thumbs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 3, ArrowLeft: -1, ArrowUp: -3 }[event.key];
    if (!step) return;
    event.preventDefault();
    const nodes = [...thumbs.children];
    const at = nodes.indexOf(document.activeElement);
    nodes[Math.max(0, Math.min(nodes.length - 1, at + step))]?.focus();
  });
  if (chosen.files !== false) addEventListener("dragover", (event) => event.preventDefault(), { signal });
  if (chosen.files !== false) addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  }, { signal });

  const pick = runs.length ? field("Images of", select(runs.map((run) => ({ value: run.id, text: run.name })), state.run, other)) : null;
  const node = el("section", { class: "chooser noprint", "aria-label": "Choose an image" },
    pick, !live || chosen.files === false ? null : el("div", { class: "row" }, add, file), trouble, thumbs,
    el("div", { class: "row pager" }, earlier, later, count));
  return { node, start: async () => {
    try {
      const images = await show();
      return chosen.lost ? undefined : [...state.uploads, ...images].find((image) => image.id === state.image) ?? images[0];
    } catch (error) { complain(error); return undefined; }
  }, choose };
}
