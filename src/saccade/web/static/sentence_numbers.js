// The numbers behind a sentence's picture: the query and key of a pair, the row of the table that a token stands for
// against a patch that is projected, and what happens when the words change places.

import { el, replace } from "./dom.js";
import { latest } from "./latest_request.js";
import { CanvasPainter, colours } from "./painter.js";
import { apart } from "./text_direction.js";
import { percent } from "./sentence_drawing.js";

const TITLE = "Query, key and value";
const whole = (value) => Math.round(value).toLocaleString("en");
const short = (value) => (Object.is(value, -0) ? 0 : value).toFixed(2).replace("-", "−");

export class SentenceNumbers {
  constructor(view) {
    this.view = view;
    this.pair = el("section", { class: "card sentence-pair" });
    this.look = el("section", { class: "card sentence-look-up" });
    this.order = el("section", { class: "card sentence-order" });
    this.root = el("div", { class: "sentence-two" }, this.pair, this.look, this.order);
    this.seed = 0;
    this.questions = latest();
  }

  opened() {
    this.seed = 0;
    this.chosen();
    this.showOrder(null);
  }

  // Another query or key word, layer or head was selected.
  async chosen() {
    const { view } = this, { state, source, signal } = view, units = view.units();
    const still = this.questions();
    const asks = units[state.asks], answers = units[state.answers];
    const head = state.head === "mean" ? undefined : state.head; // of the mean there is no single query and key
    try {
      const [found, row] = await Promise.all([
        answers && source.pair ? source.pair(state.layer, head, asks.first, answers.first) : null,
        source.lookUp(source.info.tokens[asks.first].id)]);
      if (!still() || signal.aborted) return;
      this.showPair(asks, answers, found);
      this.showLookUp(source.info.tokens[asks.first], row);
    } catch (error) {
      if (!still() || signal.aborted) return;
      this.look.hidden = true;
      replace(this.pair, el("h2", null, TITLE), el("p", { class: "note", role: "alert" }, error.message));
    }
  }

  showPair(asks, answers, found) {
    this.pair.hidden = !this.view.source.pair;
    const title = el("h2", null, TITLE);
    const words = el("p", null, "Every word makes three vectors. The ", el("strong", null, "query"), " is what it asks, the ",
      el("strong", null, "key"), " what it offers, the ", el("strong", null, "value"),
      " what it hands over. How well a query fits a key is their product, number by number, summed: q·k.");
    if (!found) {
      replace(this.pair, title, words, el("p", { class: "soft" }, "Choose the word that answers: shift-click a word, click a cell of the matrix, a word of the list, or press the arrow keys up and down."));
      return;
    }
    const [asked, answered] = [apart(asks.text), apart(answers.text)];
    const several = [asks, answers].some((unit) => unit.first !== unit.last);
    const mean = this.view.state.head === "mean";
    replace(this.pair, title, words,
      el("p", { class: "soft" }, `“${asked}” asks “${answered}”, layer ${this.view.state.layer}, head ${found.head}`,
        mean && found.visible ? " (the head in which this pair is strongest)" : "", several ? "; of words of several tokens, the first token" : "", "."),
      strip(`query of “${asked}”`, found.query), strip(`key of “${answered}”`, found.key), strip("query × key", found.products),
      found.visible ? el("p", { class: "sum" },
        `q·k = ${short(found.score / found.scale)}, times 1/√${Math.round(1 / found.scale ** 2)} = ${short(found.score)}. `,
        `Softmax: e^${short(found.score)} out of a sum of e^${short(found.log_sum)} over all ${this.view.source.info.tokens.length} tokens = `,
        el("strong", null, percent(found.weight)), ".")
        : el("p", { class: "sum" }, "The mask hides this word from that one: it comes later. Its weight is ", el("strong", null, "0"), "."));
  }

  showLookUp(token, found) {
    const title = el("h2", null, "Embedding table and patch projection");
    if (!found) { this.look.hidden = true; return; }
    this.look.hidden = false;
    const digits = Math.floor(found.patch_values_log10);
    replace(this.look, title,
      el("p", null, "A text has a fixed vocabulary. The token ", el("strong", null, token.unknown ? `${token.piece} (unknown: ${apart(token.text)})` : apart(token.piece)),
        ` is row ${whole(found.token)} of a table of ${whole(found.vocabulary)} rows and ${found.width} numbers a row, ${whole(found.table_numbers)} in all:`),
      strip(`row ${whole(found.token)}`, found.row),
      el("p", null, `A patch of ${found.patch_px} × ${found.patch_px} pixels and three colours is ${found.patch_numbers} bytes. It can look in `,
        `256`, el("sup", null, String(found.patch_numbers)), " = 2", el("sup", null, String(found.patch_values_log2)), " ≈ 10", el("sup", null, String(digits)),
        " ways, against some 2", el("sup", null, String(found.atoms_log2)), " atoms in the universe: no table has so many rows. So a vision transformer multiplies the ",
        `${found.patch_numbers} bytes by a learned matrix. At this width that is ${found.patch_numbers} × ${found.width} + ${found.width} = ${whole(found.projection_numbers)} numbers.`));
  }

  showOrder(found) {
    const { source } = this.view;
    if (!source.order) { this.order.hidden = true; return; }
    const button = el("button", { type: "button", onclick: () => this.shuffle(button) }, found ? "Shuffle again" : "Shuffle the words");
    const result = found && [
      el("p", null, "In another order: ", el("em", { dir: "auto" }, found.shuffled)),
      el("table", null,
        el("thead", null, el("tr", null, el("th", { scope: "col" }, "largest change of a word's output"), el("th", { scope: "col", class: "number" }, ""))),
        el("tbody", null,
          el("tr", null, el("th", { scope: "row" }, "with positions"), el("td", { class: "number" }, found.with_positions.toPrecision(3))),
          el("tr", null, el("th", { scope: "row" }, "without positions"), el("td", { class: "number" }, found.without.toPrecision(2))),
          el("tr", null, el("th", { scope: "row" }, "typical output, for comparison"), el("td", { class: "number" }, found.typical.toPrecision(3))))),
      el("p", null, found.causal ? "This model masks later words, which alone makes it depend on the order."
        : found.without < 1e-3 * found.typical ? "Without positions the same outputs come back in the new order: attention sees a set of words, not a sentence."
          : "Even without positions the outputs differ: another part of this model depends on the order."),
    ];
    replace(this.order, el("h2", null, "Word order"),
      el("p", null, "Attention itself is independent of word order. Only the position embedding added to every token depends on it."), button, result);
  }

  async shuffle(button) {
    const { source, signal } = this.view;
    button.disabled = true;
    try {
      const found = await source.order(this.seed++);
      if (!signal.aborted && source === this.view.source) this.showOrder(found);
    } catch (error) {
      if (!signal.aborted && source === this.view.source) replace(this.order, el("h2", null, "Word order"), el("p", { role: "alert" }, error.message));
    }
  }
}

// A vector as bars about a centre line: up is positive, down is negative.
function strip(label, values) {
  const canvas = el("canvas", { class: "inked", role: "img", "aria-label": `${label}: ${values.slice(0, 6).map(short).join(", ")} …` });
  const most = Math.max(1e-9, ...values.map(Math.abs));
  const first = values.slice(0, 4).map(short).join(", ");
  const wide = 360, tall = 44, step = wide / values.length, ink = colours(), painter = new CanvasPainter(canvas, wide, tall);
  painter.rect(0, tall / 2, wide, 1, ink.hair);
  values.forEach((value, i) => {
    const high = Math.abs(value) / most * (tall / 2 - 2);
    painter.rect(i * step, value > 0 ? tall / 2 - high : tall / 2, Math.max(0.6, step - (step > 4 ? 1.5 : 0.2)), high, value > 0 ? ink.line : ink.mark);
  });
  return el("figure", { class: "strip" }, canvas, el("figcaption", null, `${label}: ${values.length} numbers, ${first} …`));
}
