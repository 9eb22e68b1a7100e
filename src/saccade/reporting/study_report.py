"""OUT/study.html, study.md and study.csv from study.json: which inductive bias pays at which dataset size. No torch.

Conclusions come first, each with its rule and its evidence; then curves, effects, tables, costs and the protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saccade.base import run_folder
from saccade.base.files import write_text
from saccade.evaluation.findings import named
from saccade.reporting import study_tables as tables
from saccade.reporting.evaluation_results import points
from saccade.reporting.html import (
    Html,
    breakable,
    count,
    details,
    duration,
    facts,
    h,
    missing,
    note,
    number,
    page,
    paragraphs,
    section,
    sequence,
)
from saccade.reporting.html import table as plain_table
from saccade.reporting.run_files import mapping
from saccade.reporting.study_charts import (
    cost_charts,
    curve_charts,
    curve_svgs,
    drift_charts,
    drift_svgs,
    effect_chart,
    key,
)

QUESTION = "Which inductive bias pays?"
ABOUT = {
    "lead": "Best backbone",
    "crossing": "Crossings",
    "augmentation": "Augmentation",
    "equivariance": "Built-in equivariance",
    "pretraining": "DINO on the same images",
    "robustness": "Corrupted test images",
    "cost": "Cost",
}
PRETRAINED = {
    "dino-finetuned": "DINO, then fine-tuned, minus labels only",
    "dino-logistic": "DINO features with logistic regression, minus labels only",
    "dino-knn": "DINO features with k-NN, minus labels only",
}
LONG = "scores named numbers-table"  # left out on paper
SHOWN_SERIES = 2
Study = Mapping[str, Any]


# --- words --------------------------------------------------------------------------------------


def sentences(study: Study) -> list[Mapping[str, Any]]:
    """The conclusions of the summary, and the cost of the backbones."""
    conclusions_ = [s for s in sequence(summary(study).get("conclusions")) if isinstance(s, Mapping)]
    return conclusions_ + [s for s in [cost_sentence(study)] if s]


def summary(study: Study) -> Mapping[str, Any]:
    return mapping(study.get("summary"))


def cost_sentence(study: Study) -> Mapping[str, Any] | None:
    """Training time relative to the fastest backbone."""
    speeds = {str(b): number(mapping(c).get("images_per_second")) for b, c in mapping(study.get("costs")).items()}
    speeds = {name: speed for name, speed in speeds.items() if speed > 0 and math.isfinite(speed)}
    if len(speeds) < 2:
        return None
    first = max(speeds, key=lambda name: speeds[name])
    others = sorted((name for name in speeds if name != first), key=lambda name: -speeds[name])
    times = [f"{speeds[first] / speeds[name]:.1f} times ({name})" for name in others]
    text = f"On this machine {first} trains fastest, {count(speeds[first])} images/s; for the same images "
    text += f"others take {named(times)} its time."
    rule = "Training images per second; each backbone is timed twice in its own process and the faster timing counts."
    return {"about": "cost", "text": text, "rule": rule, "evidence": []}


def cautions(study: Study) -> list[str]:
    """Limits that apply to every number."""
    trials = mapping(study.get("cells"))
    done, planned = number(trials.get("done")), number(trials.get("planned"))
    texts = []
    if done < planned:
        texts.append(f"Only {count(done)} of {count(planned)} trainings are done: this page shows part of the study.")
    return texts + [str(words) for words in sequence(mapping(summary(study).get("protocol")).get("limits"))]


# --- head ---------------------------------------------------------------------------------------


def head_blocks(study: Study, links: Sequence[tuple[str, str]]) -> list[object]:
    data, results, trials = mapping(study.get("data")), summary(study), mapping(study.get("cells"))
    claims = sentences(study)
    sizes = [count(size) for size in sequence(results.get("sizes"))]
    seeds = max((number(row.get("seeds")) for row in sequence(results.get("points"))), default=math.nan)
    items: list[tuple[object, object]] = [
        ("backbones", count(len(sequence(study.get("backbones"))))),
        ("labelled images", " – ".join(dict.fromkeys([sizes[0], sizes[-1]])) if sizes else "–"),
        ("seeds", count(seeds)),
        ("trainings", count(trials.get("done"))),
        ("test images", count(data.get("n_test"))),
        ("test groups", count(data.get("groups_test"))),
    ]
    name = data.get("name")
    return [
        h("p", {"class": "eyebrow"}, "saccade compare", h("span", None, f" · {name}") if name else None),
        h("h1", None, QUESTION),
        h("p", {"class": "finding"}, claims[0]["text"] if claims else "No results yet."),
        h("p", {"class": "rule"}, "A difference is reported only where its paired interval excludes zero."),
        [note(h("strong", None, "Note. "), words) for words in cautions(study)],
        facts(items, "numbers"),
        h("nav", {"aria-label": "Sections"}, [h("a", {"href": f"#{key}"}, words) for key, words in links]),
    ]


# --- sections -----------------------------------------------------------------------------------


def conclusions(study: Study) -> Html:
    claims = sentences(study)
    if not claims:
        return section("conclusions", "Conclusions", missing("No training is done yet."))
    by_topic: dict[str, list[Mapping[str, Any]]] = {}
    for sentence in claims:
        by_topic.setdefault(str(sentence.get("about")), []).append(sentence)
    blocks = [
        h(
            "div",
            {"class": "claim"},
            h("h3", None, ABOUT.get(topic, topic)),
            h("div", None, [_claim(s) for s in topic_claims]),
        )
        for topic, topic_claims in by_topic.items()
    ]
    return section("conclusions", "Conclusions", h("div", {"class": "claims"}, blocks))


def _claim(sentence: Mapping[str, Any]) -> list[Html]:
    rows = [[breakable(r.get("what")), *_judged(r)] for r in sequence(sentence.get("evidence"))]
    head = ["difference", "points", "95 % interval", "corrected interval", "verdict"]
    evidence = plain_table("evidence", head, rows) if rows else None
    return [
        h("p", None, sentence.get("text")),
        details("Decision rule", h("p", None, sentence.get("rule")), evidence),
    ]


def _judged(row: Mapping[str, Any]) -> list[str]:
    strict = {"low": row.get("strict_low"), "high": row.get("strict_high")}
    verdict = "clear" if row.get("clear") else "not clear"
    value = points(number(row.get("difference")), sign=True)
    return [value, tables.span(row, sign=True), tables.span(strict, sign=True), verdict]


def curves(study: Study) -> Html:
    results = summary(study)
    if not sequence(results.get("points")):
        return section("curves", "Learning curves", missing("No training is done yet."))
    return section(
        "curves",
        "Learning curves",
        h(
            "p",
            None,
            "Mean over seeds; the bands are 95 % intervals over test groups and seeds. All panels have one scale.",
        ),
        curve_charts(results),
        details("Every number", tables.to_html(tables.curve_table(results))),
        details("Differences from the first backbone", tables.to_html(tables.reference_table(results))),
        details("Differences of every two backbones", tables.to_html(tables.pair_table(results), LONG)),
    )


def crossings(study: Study) -> Html | None:
    made = tables.crossing_table(summary(study))
    return section("crossings", "Crossings of learning curves", tables.to_html(made)) if made else None


def effects(study: Study) -> Html | None:
    results = summary(study)
    given = [(mapping(results.get("augmentation")), "Augmented minus not augmented")]
    given += [(mapping(mapping(results.get("pretraining")).get(key)), words) for key, words in PRETRAINED.items()]
    given = [(block, words) for block, words in given if sequence(block.get("rows"))]
    if not given:
        return None
    return section(
        "effects",
        "Effects of augmentation and of DINO",
        h(
            "p",
            None,
            "Paired differences; above zero the treatment helps. Bands or whiskers are 95 % intervals.",
        ),
        key(study),
        h("div", {"class": "charts wide"}, [effect_chart(results, block, words) for block, words in given]),
        [details(words, tables.to_html(tables.effect_table(results, block, words))) for block, words in given],
    )


def two(study: Study) -> Html | None:
    made = tables.ten_table(summary(study))
    return section("two", f"{made.label}, side by side", tables.to_html(made)) if made else None


def robustness(study: Study) -> Html | None:
    table = tables.robustness_table(summary(study))
    if not table:
        return None
    first_series, rest = (
        replace(table, blocks=table.blocks[:SHOWN_SERIES]),
        replace(table, blocks=table.blocks[SHOWN_SERIES:]),
    )
    more = details("Other series", tables.to_html(rest)) if rest else None
    return section("robustness", "Corrupted test images", tables.to_html(first_series), more)


def turning(study: Study) -> Html | None:
    charts = drift_charts(study)
    words = (
        "Distance of the image vector after rotating the image: 0 is invariance, 1 the distance to another image. "
        "Images are masked to a disc, so that corners have no influence."
    )
    return section("turning", "Rotated images", h("p", None, words), charts) if charts else None


def prices(study: Study) -> Html:
    made = tables.cost_table(study)
    if not made:
        return section("costs", "Cost", missing("No backbone was timed."))
    return section("costs", "Cost", tables.to_html(made), cost_charts(study))


def protocol(study: Study) -> Html:
    data, settings = mapping(study.get("data")), mapping(study.get("settings"))
    classes = [str(name) for name in sequence(data.get("classes"))]
    held = f"{count(data.get('n_train'))} training images, {count(data.get('n_test'))} test images in "
    held += f"{count(data.get('groups_test'))} groups, {len(classes)} classes: {', '.join(classes)}."
    texts = [held, data.get("text"), study.get("budget"), study.get("protocol")]
    texts.append(mapping(summary(study).get("protocol")).get("text"))
    items = [(breakable(key), breakable(_value(value))) for key, value in settings.items()]
    return section(
        "protocol",
        "Protocol",
        [paragraphs(text) for text in texts if text],
        details("Settings", facts(items, "settings")) if items else None,
    )


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (Mapping, list)) else str(value)


def trainings(study: Study) -> Html:
    trials = mapping(study.get("cells"))
    failed = [str(words) for words in sequence(trials.get("failed"))]
    took = number(trials.get("seconds"))
    words = f"{count(trials.get('done'))} of {count(trials.get('planned'))} trainings are done"
    words += f"; total time {duration(took)}." if math.isfinite(took) else "."
    rows = [
        [breakable(r["backbone"]), tables.series_words(r["series"]), count(r["size"]), count(r["seeds"]), _seeds(r)]
        for r in sequence(summary(study).get("points"))
    ]
    head = ["backbone", "series", "images", "seeds", f"{tables.metric_name(summary(study))} of each seed, %"]
    return section(
        "trainings",
        "Trainings",
        h("p", None, words),
        [h("h3", None, f"Failed ({len(failed)})"), h("ul", None, [h("li", None, f) for f in failed])]
        if failed
        else None,
        details(f"Every seed ({len(rows)} rows)", plain_table("every seed", head, rows)) if rows else None,
    )


def _seeds(row: Mapping[str, Any]) -> str:
    return ", ".join(points(number(value)) for value in mapping(row.get("by_seed")).values())


# --- files --------------------------------------------------------------------------------------


def render(study: Study) -> str:
    """The page as text; the same study gives the same bytes."""
    parts: list[tuple[str, str, Html | None]] = [
        ("conclusions", "Conclusions", conclusions(study)),
        ("curves", "Curves", curves(study)),
        ("crossings", "Crossings", crossings(study)),
        ("effects", "Effects", effects(study)),
        ("two", "Two side by side", two(study)),
        ("robustness", "Robustness", robustness(study)),
        ("turning", "Rotation", turning(study)),
        ("costs", "Costs", prices(study)),
        ("protocol", "Protocol", protocol(study)),
        ("trainings", "Trainings", trainings(study)),
    ]
    links = [(key, name) for key, name, body in parts if body is not None]
    name = mapping(study.get("data")).get("name")
    return page(
        f"{QUESTION} · {name} · saccade" if name else f"{QUESTION} · saccade",
        "en",
        h("header", None, head_blocks(study, links)),
        h("main", None, [body for _, _, body in parts]),
        h("footer", None, "One file without scripts or external resources. Written by saccade compare."),
    )


def to_markdown(study: Study) -> str:
    """The same as Markdown tables."""
    results, data = summary(study), mapping(study.get("data"))
    parts = [f"# {QUESTION}", tables.plain(f"Data: {data.get('name', 'unknown')}. {data.get('text', '')}")]
    parts += [f"**{tables.plain(words)}**" for words in cautions(study)]
    claims = [f"* {tables.plain(s.get('text'))}" for s in sentences(study)]
    parts += ["## Conclusions", "\n".join(claims) or "No results yet."]
    pretraining = mapping(results.get("pretraining"))
    parts += [f"![{tables.plain(name)}](figures/{name}.svg)" for name in figures(study)]
    made = [("Learning curves", tables.curve_table(results)), ("Differences", tables.reference_table(results))]
    made += [("Crossings", tables.crossing_table(results))]
    words = "Augmented minus not augmented"
    made += [("Augmentation", tables.effect_table(results, mapping(results.get("augmentation")), words))]
    made += [
        (words, tables.effect_table(results, mapping(pretraining[key]), words))
        for key, words in PRETRAINED.items()
        if key in pretraining
    ]
    made += [
        ("Two side by side", tables.ten_table(results)),
        ("Corrupted test images", tables.robustness_table(results)),
    ]
    made += [("Costs", tables.cost_table(study))]
    for title, table in made:
        if table:
            parts += [f"## {title}", tables.to_markdown(table).rstrip()]
    rules = [study.get("budget"), study.get("protocol"), mapping(results.get("protocol")).get("text")]
    parts += ["## Protocol", *(tables.plain(text) for text in rules if text)]
    return "\n\n".join(parts) + "\n"


def figures(study: Study) -> dict[str, str]:
    """The curves as SVG files, for slides and papers: learning curves, and distance over the angle."""
    curves = {f"curves-{name}": svg for name, svg in curve_svgs(summary(study)).items()}
    return curves | {f"turned-{name}": svg for name, svg in drift_svgs(study, label_ends=True).items()}


def write_study(folder: Path) -> Path:
    """Write study.html, study.md, study.csv and figures/*.svg from study.json; returns the path of the page.

    Raises
    ------
    UsageError
        There is no study.json.
    StorageError
        A file cannot be written.
    """
    folder = Path(folder)
    study = mapping(run_folder.read_json(folder / "study.json"))
    (folder / "figures").mkdir(exist_ok=True)
    for name, svg in figures(study).items():
        write_text(folder / "figures" / f"{name}.svg", svg + "\n")
    write_text(folder / "study.md", to_markdown(study))
    write_text(folder / "study.csv", tables.to_csv(summary(study)))
    write_text(folder / "study.html", render(study))
    return folder / "study.html"
