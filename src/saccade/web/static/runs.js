// Runs: progress, diagnoses, evaluation and comparison.

import { json, link } from "./server_api.js";
import { chart, key } from "./line_chart.js";
import { el, redraw, replace, say } from "./dom.js";
import { compact } from "./patch_maps.js";
import { latest } from "./latest_request.js";
import { showLoading } from "./loading.js";

// Figures in order of importance; others follow by name.
const TITLES = {
  loss: "Loss", knn: "k-NN accuracy, live probe", rank: "Effective rank of the features", agreement: "Cosine similarity of two views",
  teacher_entropy: "Entropy of the teacher, nats", kl: "KL(teacher ‖ student), nats", feature_std: "Standard deviation of the features", spread: "Standard deviation of the features",
  grad_norm: "Gradient norm", koleo: "KoLeo term", coding_rate: "Coding rate", marginal_entropy: "Entropy of the mean output, nats", center_norm: "Centre norm",
  invariance: "Distance between views of an image", sigreg: "SIGReg: distance from a normal distribution", accuracy: "Accuracy", found: "Positive ranked first",
  lr: "Learning rate", images_per_second: "Images per second", wait: "Data-loading wait",
};
const LEFT_OUT = new Set(["step", "epoch", "seconds", "images", "weight_decay", "momentum", "student_entropy"]);

export async function show(root, context) {
  showLoading(root, "Runs", "Loading runs.");
  const runs = await json("runs", {}, context.signal);
  if (!runs.length) {
    replace(root, el("h1", null, "Runs"), el("p", null, "No runs yet. ", el("code", null, "saccade pretrain DATA --out RUN"), " makes one."));
    return;
  }
  new Runs(root, context, runs).build();
}

class Runs {
  constructor(root, context, runs) {
    Object.assign(this, { root, context, runs });
    const named = (context.query.get("runs") ?? "").split(",").filter((id) => runs.some((run) => run.id === id));
    this.chosen = new Set(named.length ? named : [(runs.find((run) => !run.gone) ?? runs[0]).id]);
    this.lines = new Map();
    this.doctor = new Map();
    this.folds = new Set();
    this.choices = latest();
  }

  build() {
    this.cards = el("ul", { class: "cards runs-list", "aria-label": "Runs" });
    this.state = el("p", { class: "soft", role: "status" });
    this.illnesses = el("div");
    this.curves = el("div");
    this.tables = el("div");
    replace(this.root, el("h1", null, "Runs"), this.cards, this.state, this.illnesses, this.curves, this.tables);
    replace(this.cards, this.runs.map((run) => this.card(run)));
    this.context.signal.addEventListener("abort", () => this.stream?.close());
    this.choose();
  }

  card(run) {
    const box = el("input", { type: "checkbox", checked: this.chosen.has(run.id), "aria-label": `Show ${run.name}`,
      onchange: () => { if (box.checked) this.chosen.add(run.id); else this.chosen.delete(run.id); this.choose(); } });
    const told = el("div", { class: "told" });
    const node = el("li", { class: "card", "data-run": run.id }, el("label", { class: "check" }, box, el("strong", null, run.name)), told);
    this.tell(run, told);
    return node;
  }

  // The text of a card, updated by the events of a running run.
  tell(run, place = this.cards.querySelector(`[data-run="${run.id}"] .told`)) {
    if (run.gone) { replace(place, el("p", { class: "soft" }, "No longer there: its folder was moved or deleted.")); return; }
    const steps = run.steps ? `${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")} steps` : "";
    const state = run.running ? "running" : run.finished ? "finished" : "";
    redraw(place, () => replace(place,
      el("p", { class: "soft" }, `${run.title} · ${run.data}`),
      el("p", null, run.headline, run.measured_on ? [" Measured on ", el("strong", null, run.measured_on), ", not on the training data."] : null),
      badges(this.doctorOf(run)),
      el("p", { class: "soft progress" }, state ? el("strong", null, state) : null, state && steps ? " · " : null, steps),
      run.report ? el("a", { href: link(`runs/${run.id}/report`), target: "_blank", rel: "noopener" }, "Report") : null));
  }

  async choose() {
    this.stream?.close();
    const still = this.choices();
    const ids = this.runs.map((run) => run.id).filter((id) => this.chosen.has(id));
    history.replaceState(null, "", `${location.pathname}#/runs${ids.length ? `?runs=${ids.join(",")}` : ""}`);
    this.lines.clear();
    this.doctor.clear();
    this.draw();
    this.drawDoctor();
    for (const run of this.runs) this.tell(run);
    this.listen(ids);
    await this.measure(ids, still);
  }

  async measure(ids, still) {
    const there = this.runs.filter((run) => ids.includes(run.id) && !run.gone);
    const found = await Promise.all(there.map(({ id }) => json(`runs/${id}`, {}, this.context.signal).catch((error) => error)));
    if (!still() || this.context.signal.aborted) return;
    const failed = found.filter((one) => one instanceof Error);
    this.drawTables(found.filter((one) => !failed.includes(one)));
    this.tables.prepend(...failed.map((error) => el("p", { class: "note", role: "alert" }, error.message)));
  }

  listen(ids) {
    this.stream = new EventSource(link("live", { runs: ids.join(",") }));
    this.stream.addEventListener("lines", (event) => {
      const { run, anew, lines, doctor } = JSON.parse(event.data);
      if (anew || !this.lines.has(run)) { this.lines.set(run, []); this.doctor.set(run, []); }
      this.lines.get(run).push(...lines);
      this.doctor.get(run).push(...doctor);
      for (const one of doctor) say(`${this.name(run)}: ${one.name}`);
      if (anew || doctor.length) this.tell(this.runs.find((one) => one.id === run));
      this.drawSoon();
    });
    this.stream.addEventListener("card", (event) => this.hear(JSON.parse(event.data)));
    // The browser reconnects by itself; the server then sends everything from the start.
    this.stream.addEventListener("open", () => { this.lines.clear(); this.doctor.clear(); });
  }

  // Lines received while the page is open, else those of the list of runs.
  doctorOf(run) { return this.doctor.get(run.id)?.length ? this.doctor.get(run.id) : this.lines.has(run.id) ? [] : run.doctor ?? []; }

  name(id) { return this.runs.find((run) => run.id === id).name; }

  // A changed card. A run that has ended or was evaluated shows more than its curves.
  hear(card) {
    const at = this.runs.findIndex((run) => run.id === card.id), before = this.runs[at];
    this.runs[at] = { doctor: before.doctor, ...card };
    this.tell(card);
    if (card.finished && !before.finished) say(`${card.name}: finished`);
    if (this.chosen.has(card.id) && (card.measured !== before.measured || (card.measured && card.headline !== before.headline))) {
      this.measure(this.runs.map((run) => run.id).filter((id) => this.chosen.has(id)), this.choices());
    }
  }

  // Several runs send their lines at once; one drawing is enough.
  drawSoon() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = null; this.draw(); this.drawDoctor(); });
  }

  draw() {
    const ids = this.runs.map((run) => run.id).filter((id) => this.chosen.has(id) && this.lines.get(id)?.length);
    if (!ids.length) { replace(this.curves, this.chosen.size ? el("p", { class: "soft" }, "No figures logged yet.") : el("p", { class: "soft" }, "Tick a run.")); return; }
    const found = new Set(ids.flatMap((id) => this.lines.get(id).flatMap((line) => Object.keys(line))));
    const order = Object.keys(TITLES);
    const figures = [...found].filter((figure) => !LEFT_OUT.has(figure)).sort((a, b) =>
      (order.indexOf(a) + 1 || 99) - (order.indexOf(b) + 1 || 99) || a.localeCompare(b));
    const index = (id) => this.runs.findIndex((run) => run.id === id);
    // Old runs can have a k-NN of 0: none of the tested classes was among the voters.
    const charts = figures.map((figure) => {
      const series = ids.map((id) => ({ name: this.name(id), index: index(id),
        points: this.lines.get(id).filter((line) => Number.isFinite(line[figure])).map((line) => [line.step, line[figure]]) }))
        .filter(({ points }) => points.some(([, value]) => figure !== "knn" || value > 0));
      return series.length ? chart(TITLES[figure] ?? figure, series) : null;
    });
    replace(this.curves, el("h2", null, "Curves"), key(ids.map((id) => ({ name: this.name(id), index: index(id) }))),
      el("div", { class: "charts" }, charts));
  }

  drawDoctor() {
    const notes = [...this.doctor].filter(([id]) => this.chosen.has(id)).flatMap(([id, found]) => found.map((one) =>
      el("div", { class: "note" }, el("strong", null, `${this.name(id)}: ${one.name}`), ` since step ${one.since}`,
        el("p", null, one.evidence), el("p", null, `Likely cause: ${one.cause}`),
        one.change || one.advice ? el("p", null, "Change: ", one.change ? el("code", null, one.change) : null, " ", one.advice) : null)));
    const quiet = [...this.lines.keys()].filter((id) => this.chosen.has(id) && !this.doctor.get(id)?.length);
    replace(this.illnesses, notes, quiet.length ? el("p", { class: "soft", "data-healthy": "yes" },
      `The doctor finds nothing wrong in the figures of ${quiet.map((id) => this.name(id)).join(", ")}.`) : null);
  }

  drawTables(found) {
    replace(this.tables, sideBySide(found), found.map((one) => fullTable(one)), differences(found));
  }
}

// The doctor's findings, on every card and over every table of a run.
function badges(found) {
  return found?.length ? el("p", { class: "ill" }, "Doctor: ", found.map((one) =>
    el("span", { class: "badge", title: one.evidence }, `${one.name} since step ${one.since.toLocaleString("en")}`))) : null;
}

const share = (fraction) => `${compact(100 * fraction)} %`;
const points = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));

function cellOf(evaluation, model, probe, fraction) {
  const row = evaluation.rows.find((one) => one.model === model && one.probe === probe && one.fraction === fraction);
  if (!row) return el("td", { class: "number" }, "–");
  const interval = evaluation.one_group ? "one group: no interval" : `${points(row.low)} to ${points(row.high)}${evaluation.few ? ` over ${evaluation.few} only: too few to conclude` : ""}`;
  return el("td", { class: "number" }, points(row.mean), el("small", null, ` ${interval}`));
}

const PROBES = { knn: "k-NN", logistic: "logistic regression" };

// The models of several runs in one table, if they were evaluated with the same metric.
function sideBySide(found) {
  const measured = found.filter((one) => one.evaluation);
  if (measured.length < 2) return null;
  const same = measured.filter((one) => one.evaluation.metric === measured[0].evaluation.metric);
  const probes = [...new Set(same.flatMap((one) => one.evaluation.probes))];
  const fractions = [...new Set(same.flatMap((one) => one.evaluation.fractions))].sort((a, b) => b - a);
  return el("section", null, el("h2", null, "Side by side"),
    el("p", { class: "soft" }, "Each run as its own evaluation measured it, with 95 % intervals. Runs measured on different data or splits cannot be compared by these numbers."),
    el("div", { class: "scroll" }, el("table", null,
      el("thead", null, el("tr", null, el("th", null, `${same[0].evaluation.metric.replace("_", " ")}, %`), same.map((one) => el("th", { class: "number" }, one.name, badges(one.doctor))))),
      el("tbody", null, probes.flatMap((probe) => fractions.map((fraction) => el("tr", null,
        el("th", { scope: "row" }, `${PROBES[probe] ?? probe}, ${share(fraction)} of labels`),
        same.map((one) => cellOf(one.evaluation, one.evaluation.primary, probe, fraction)))))))));
}

function fullTable(one) {
  const evaluation = one.evaluation;
  if (!evaluation) return el("p", { class: "soft" }, `${one.name} has not been evaluated: `, el("code", null, one.evaluate),
    one.evaluate.endsWith(" DATA") ? " needs labelled images outside the training data as DATA." : null);
  return el("section", null, el("h2", null, `${one.name}: few-label evaluation`),
    badges(one.doctor),
    one.measured_on ? el("p", { class: "soft" }, `Measured on ${one.measured_on}; it learned from ${one.data}.`) : null,
    evaluation.overlap ? el("p", { class: "note" }, "Evaluated on images used in pretraining.") : null,
    evaluation.probes.map((probe) => el("div", { class: "scroll" }, el("table", null,
      el("thead", null, el("tr", null, el("th", null, `${PROBES[probe] ?? probe}, ${evaluation.metric.replace("_", " ")}, %`),
        evaluation.fractions.map((fraction) => el("th", { class: "number" }, `${share(fraction)} of labels`)))),
      el("tbody", null, evaluation.models.map((model) => el("tr", null, el("th", { scope: "row" }, model),
        evaluation.fractions.map((fraction) => cellOf(evaluation, model, probe, fraction)))))))),
    evaluation.protocol ? el("details", null, el("summary", null, "Evaluation protocol"), evaluation.protocol.split("\n\n").map((text) => el("p", null, text))) : null);
}

function differences(found) {
  if (found.length < 2) return null;
  const names = [...new Set(found.flatMap((one) => Object.keys(one.settings)))];
  const rows = names.filter((name) => new Set(found.map((one) => JSON.stringify(one.settings[name] || null))).size > 1);
  return el("section", null, el("h2", null, "Settings that differ"),
    rows.length ? el("div", { class: "scroll" }, el("table", null,
      el("thead", null, el("tr", null, el("th", null, "Setting"), found.map((one) => el("th", null, one.name)))),
      el("tbody", null, rows.map((name) => el("tr", null, el("th", { scope: "row", class: "code" }, name),
        found.map((one) => el("td", null, String(one.settings[name] ?? "–")))))))) : el("p", null, "None."));
}
