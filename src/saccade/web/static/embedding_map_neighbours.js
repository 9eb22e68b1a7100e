// Nearest neighbours of one image, their vote for a label, filters, and a file as query.

import { json, link, post, upload } from "./server_api.js";
import { named } from "./embedding_map_legend.js";
import { el, field, replace, say, select } from "./dom.js";
import { latest } from "./latest_request.js";

const KS = [5, 10, 20, 50, 100];

export class Neighbours {
  // page: {table, signal, columns, describe(hit), go(row), marked(row, rows)}
  constructor(page) {
    this.page = page;
    this.k = 10;
    this.apart = page.about.columns.includes("group") && page.grouped;
    this.where = [];
    this.asked = null;
    this.questions = latest();
    this.columns = latest();
    this.list = el("ol", { class: "hits" });
    this.head = el("p", { class: "soft" }, "Click a point, or press Enter on it, to see which images the model finds most like it.");
    this.votes = el("div", { class: "votes" });
    this.chips = el("div", { class: "chips" });
    const file = el("input", { type: "file", class: "visually-hidden", accept: "image/*,.tif,.tiff", tabindex: "-1" });
    file.addEventListener("change", () => { if (file.files[0]) this.ask({ file: file.files[0] }); file.value = ""; });
    this.node = el("section", { class: "card near", "aria-label": "Neighbours" }, el("h2", null, "Nearest neighbours"),
      el("div", { class: "row noprint" },
        field("Neighbours", select(KS.map((k) => ({ value: String(k), text: String(k) })), "10", (k) => { this.k = Number(k); this.again(); })),
        el("button", { type: "button", onclick: () => file.click() }, "Query with a file …"), file),
      this.filters(), this.chips, this.head, this.votes, this.list);
  }

  filters() {
    const { page } = this;
    const column = select(page.about.columns.map((name) => ({ value: name, text: name })), page.about.columns[0], () => fill().catch((error) => this.complain(error)));
    const value = el("select");
    const fill = async () => {
      const still = this.columns();
      const values = await json(`map/${page.table}/values`, { name: column.value }, page.signal);
      if (still()) replace(value, values.slice(0, 500).map((one) => el("option", { value: one }, named(one))));
    };
    const put = (negated) => {
      if (this.where.some((one) => one.column === column.value && one.values[0] === value.value && one.negated === negated)) return;
      this.where.push({ column: column.value, values: [value.value], negated });
      this.filtered();
    };
    const apart = el("input", { type: "checkbox", checked: this.apart, onchange: () => { this.apart = apart.checked; this.again(); } });
    const more = el("details", { class: "noprint" }, el("summary", null, "Filter"), el("div", { class: "row" },
      field("Column", column), field("Value", value),
      el("button", { type: "button", onclick: () => put(false) }, "Only these"),
      el("button", { type: "button", onclick: () => put(true) }, "Not these")));
    more.addEventListener("toggle", () => { if (more.open && !value.options.length) fill().catch((error) => this.complain(error)); });
    return [page.grouped ? el("label", { class: "check noprint" }, apart, "exclude the same group") : null, page.about.columns.length ? more : null];
  }

  filtered() {
    replace(this.chips, this.where.map((one, n) => el("button", {
      type: "button", class: "chip", "aria-label": `Remove the filter ${one.column} ${one.negated ? "is not" : "is"} ${named(one.values[0])}`,
      onclick: () => { this.where.splice(n, 1); this.filtered(); },
    }, `${one.column} ${one.negated ? "≠" : "="} ${named(one.values[0])}`, el("span", { "aria-hidden": "true" }, " ×"))));
    this.again();
  }

  again() { if (this.asked) this.ask(this.asked); }

  conditions(known) {
    const own = this.apart && known?.group ? [{ column: "group", values: [known.group], negated: true }] : [];
    return [...this.where, ...own];
  }

  // with {row} of the map, or {file} from this computer
  async ask(asked) {
    const still = this.questions(), { page } = this;
    this.asked = asked;
    this.node.setAttribute("aria-busy", "true");
    try {
      if (asked.file && !asked.upload) asked.upload = (await upload(asked.file, page.signal)).id;
      const known = asked.row === undefined ? null : (await page.known([asked.row]))[0];
      const question = { row: asked.row ?? null, upload: asked.upload ?? null, k: this.k, where: this.conditions(known) };
      const found = await post(`map/${page.table}/neighbours`, question, page.signal);
      if (!still()) return;
      this.show(asked, known, found, question.where);
    } catch (error) { if (still()) this.complain(error); } finally {
      if (still()) this.node.removeAttribute("aria-busy");
    }
  }

  complain(error) {
    if (this.page.signal.aborted) return;
    const said = error.said ?? {};
    replace(this.head, el("span", { class: "note", role: "alert" }, [error.message, said.got, said.hint].filter(Boolean).join(" · ")));
    replace(this.votes);
    replace(this.list);
    this.page.marked(-1, []);
  }

  show(asked, known, found, where) {
    const name = known ? known.id : asked.file.name, { page } = this;
    replace(this.head, el("span", { class: "asked" }, known ? this.thumb(asked.row, 64) : null, el("span", null, el("strong", null, name), known?.label ? ` ${known.label}` : "",
      el("br"), `${found.recall ?? "exact"}; ${found.rows.toLocaleString("en")} ${page.about.unit}`)));
    replace(this.votes, found.guess ? this.bars(found, where) : null);
    replace(this.list, found.hits.map((hit) => el("li", null, el("button", {
      type: "button", title: `${hit.id}: similarity ${hit.similarity.toFixed(4)}`, onclick: () => this.page.go(hit.row),
      onmouseenter: () => this.page.point(hit.row), onmouseleave: () => this.page.point(-1),
    }, this.thumb(hit.row, 96), el("span", { class: "what" }, named(hit.label ?? "")), el("span", { class: "soft" }, hit.same_file ? "the image itself" : hit.similarity.toFixed(3))))));
    if (!found.hits.length) replace(this.list, el("li", { class: "soft" }, "Nothing in the table fits these filters."));
    this.page.marked(asked.row ?? -1, found.hits.map((hit) => hit.row));
    const vote = found.guess ? `; they vote for ${found.guess.label}` : "";
    say(`${found.hits.length} ${page.about.unit} like ${name}${vote}`);
  }

  thumb(row, side) {
    return this.page.pictures
      ? el("img", { src: link(`map/${this.page.table}/thumb/${row}`, { side: 128, written: this.page.about.written }), alt: "", width: side, height: side, loading: "lazy" })
      : el("span", { class: "no-picture", "aria-hidden": "true" });
  }

  // where: the filters of the query, which restrict the votes
  bars({ guess, hits, rows }, where) {
    const voters = hits.filter((hit) => !hit.same_file && hit.label).length;
    const filters = where.map((one) => `${one.column} ${one.negated ? "is not" : "is"} ${named(one.values[0])}`).join(", ");
    return [el("h3", null, `The neighbours vote for ${guess.label}`), el("p", { class: "soft" },
      `A vote of ${voters} of ${rows.toLocaleString("en")} ${this.page.about.unit}${filters ? `, with a filter on: ${filters}` : ", without a filter"}.`),
    el("ul", null, Object.entries(guess.fractions).slice(0, 6).map(([label, share]) =>
      el("li", null, el("span", { class: "what" }, label), el("span", { class: "share", "aria-hidden": "true" }, el("span", { style: { width: `${100 * share}%` } })),
        el("span", null, `${Math.round(100 * share)} % (${guess.counts[label]})`))))];
  }
}
