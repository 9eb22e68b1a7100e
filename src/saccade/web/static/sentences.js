// Sentences: type one, choose a word, see its attention.

import { floats, json, post } from "./server_api.js";
import { el, field, replace, select } from "./dom.js";
import { latest } from "./latest_request.js";
import { SentenceView } from "./sentence_view.js";
import { showLoading, loadingText } from "./loading.js";

const LECTURE = "This GitHub page contains all the general information about the course and the study materials.";

// A sentence on the server as a source of sentence_view.js.
function server(info, model, signal) {
  const of = (what, query) => [`sentences/${info.id}/${what}`, query, signal];
  return {
    info,
    layer: (layer) => floats(...of("weights", { layer })),
    head: (layer, head) => floats(...of("weights", { layer, head })),
    pair: (layer, head, query, answer) => json(...of("pair", { layer, head, query, answer })),
    lookUp: (token) => json("sentences/look-up", { model, token }, signal),
    order: (seed) => json(...of("order", { seed })),
  };
}

export async function show(root, { query, signal }) {
  showLoading(root, "Sentences", "Loading text models.");
  const models = await json("sentences/models", {}, signal);
  const chosen = { model: models[0].id, positions: true };
  const text = el("textarea", { rows: 2, spellcheck: "false", dir: "auto", class: "sentence-text" });
  text.value = query.get("text") ?? LECTURE;
  const trouble = el("div", { role: "alert" }), wait = el("p");
  const place = el("div");
  const view = new SentenceView(place, signal);
  // Of the built-in model the second layer is the one in which words of one phrase find each other.
  Object.assign(view.state, { layer: 1, wanted: query.get("word") ?? "course" });

  const readings = latest();
  async function read() {
    const still = readings();
    if (!text.value.trim()) { replace(trouble, el("div", { class: "note" }, "Type a sentence.")); place.hidden = true; return; }
    try {
      if (!view.source) replace(wait, loadingText("The model is reading the text. The first time it has to be loaded."));
      const info = await post("sentences", { ...chosen, text: text.value }, signal);
      if (signal.aborted || !still()) return;
      replace(trouble);
      place.hidden = false;
      view.state.wanted ??= view.source && view.units()[view.state.asks]?.text;
      await view.open(server(info, chosen.model, signal));
      replace(wait);
    } catch (error) {
      if (still()) replace(wait);
      if (!signal.aborted && still()) replace(trouble, el("div", { class: "note" }, error.message, error.said?.hint ? el("p", null, error.said.hint) : null));
    }
  }

  let typing;
  text.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(read, 400); });
  signal.addEventListener("abort", () => clearTimeout(typing));
  const positions = el("input", { type: "checkbox", checked: true, onchange: () => { chosen.positions = positions.checked; read(); } });
  replace(root, el("h1", null, "Sentences"),
    el("p", { class: "soft" }, "Attention between words: click one, or use the arrow keys. Nothing you type leaves this machine."),
    el("div", { class: "row noprint" }, field("Text", text),
      models.length > 1 ? field("Model", select(models.map(({ id, name }) => ({ value: id, text: name })), chosen.model, (id) => { chosen.model = id; read(); })) : null,
      el("label", { class: "tick" }, positions, " Positions")),
    trouble, wait, place);
  await read();
}
