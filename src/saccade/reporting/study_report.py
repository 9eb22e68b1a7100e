"""OUT/study.html, study.md and study.csv: which inductive bias pays, from study.json. No torch, nothing fetched.

The page is made to be shown: what follows from the numbers comes first, each sentence with its rule and its evidence;
then curves, effects, tables, prices, and how it was done.
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
from saccade.reporting.section_evaluation import points
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
    "lead": "Who is ahead",
    "crossing": "Who passes whom",
    "augmentation": "Augmentation",
    "equivariance": "Built-in equivariance",
    "pretraining": "DINO on the same images",
    "robustness": "Changed test images",
    "cost": "What it costs",
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
    """The conclusions of the summary, and what the backbones cost."""
    said = [s for s in sequence(summary(study).get("conclusions")) if isinstance(s, Mapping)]
    return said + [s for s in [cost_sentence(study)] if s]


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
    text += f"others need {named(times)} its time."
    rule = "Training images a second, each backbone measured twice in a process of its own; the faster timing counts."
    return {"about": "cost", "text": text, "rule": rule, "evidence": []}


def cautions(study: Study) -> list[str]:
    """What the reader must know before any number."""
    cells = mapping(study.get("cells"))
    done, planned = number(cells.get("done")), number(cells.get("planned"))
    found = []
    if done < planned:
        found.append(f"Only {count(done)} of {count(planned)} trainings are done: this page shows a part of the study.")
    return found + [str(words) for words in sequence(mapping(summary(study).get("protocol")).get("limits"))]


# --- head ---------------------------------------------------------------------------------------


def head_blocks(study: Study, links: Sequence[tuple[str, str]]) -> list[object]:
    data, found, cells = mapping(study.get("data")), summary(study), mapping(study.get("cells"))
    said = sentences(study)
    sizes = [count(size) for size in sequence(found.get("sizes"))]
    seeds = max((number(row.get("seeds")) for row in sequence(found.get("points"))), default=math.nan)
    items: list[tuple[object, object]] = [
        ("backbones", count(len(sequence(study.get("backbones"))))),
        ("labelled images", " – ".join(dict.fromkeys([sizes[0], sizes[-1]])) if sizes else "–"),
        ("seeds", count(seeds)),
        ("trainings", count(cells.get("done"))),
        ("test images", count(data.get("n_test"))),
        ("test groups", count(data.get("groups_test"))),
    ]
    name = data.get("name")
    return [
        h("p", {"class": "eyebrow"}, "saccade compare", h("span", None, f" · {name}") if name else None),
        h("h1", None, QUESTION),
        h("p", {"class": "finding"}, said[0]["text"] if said else "Nothing has been measured yet."),
        h("p", {"class": "rule"}, "A difference is claimed only where its paired interval excludes zero."),
        [note(h("strong", None, "Look here. "), words) for words in cautions(study)],
        facts(items, "numbers"),
        h("nav", {"aria-label": "Sections"}, [h("a", {"href": f"#{key}"}, words) for key, words in links]),
    ]


# --- sections -----------------------------------------------------------------------------------


def conclusions(study: Study) -> Html:
    said = sentences(study)
    if not said:
        return section("conclusions", "What follows", missing("No training is done yet: nothing follows."))
    by_topic: dict[str, list[Mapping[str, Any]]] = {}
    for sentence in said:
        by_topic.setdefault(str(sentence.get("about")), []).append(sentence)
    blocks = [
        h("div", {"class": "claim"}, h("h3", None, ABOUT.get(topic, topic)), h("div", None, [_claim(s) for s in own]))
        for topic, own in by_topic.items()
    ]
    return section("conclusions", "What follows", h("div", {"class": "claims"}, blocks))


def _claim(sentence: Mapping[str, Any]) -> list[Html]:
    rows = [[breakable(r.get("what")), *_judged(r)] for r in sequence(sentence.get("evidence"))]
    head = ["difference", "points", "95 % interval", "corrected interval", "verdict"]
    shown = plain_table("evidence", head, rows) if rows else None
    return [
        h("p", None, sentence.get("text")),
        details("How this is decided", h("p", None, sentence.get("rule")), shown),
    ]


def _judged(row: Mapping[str, Any]) -> list[str]:
    strict = {"low": row.get("strict_low"), "high": row.get("strict_high")}
    verdict = "clear" if row.get("clear") else "not clear"
    value = points(number(row.get("difference")), sign=True)
    return [value, tables.span(row, sign=True), tables.span(strict, sign=True), verdict]


def curves(study: Study) -> Html:
    found = summary(study)
    if not sequence(found.get("points")):
        return section("curves", "Learning curves", missing("No training is done yet."))
    return section(
        "curves",
        "Learning curves",
        h("p", None, "Mean over seeds; the bands are 95 % intervals over test groups and seeds. All have one scale."),
        curve_charts(found),
        details("Every number", tables.to_html(tables.curve_table(found))),
        details("Differences from the first backbone", tables.to_html(tables.reference_table(found))),
        details("Differences of every two backbones", tables.to_html(tables.pair_table(found), LONG)),
    )


def crossings(study: Study) -> Html | None:
    made = tables.crossing_table(summary(study))
    return section("crossings", "Who passes whom, and when", tables.to_html(made)) if made else None


def effects(study: Study) -> Html | None:
    found = summary(study)
    given = [(mapping(found.get("augmentation")), "Augmented minus not augmented")]
    given += [(mapping(mapping(found.get("pretraining")).get(key)), words) for key, words in PRETRAINED.items()]
    given = [(block, words) for block, words in given if sequence(block.get("rows"))]
    if not given:
        return None
    return section(
        "effects",
        "What augmentation gives, and what DINO gives",
        h(
            "p",
            None,
            "Paired differences; above the line of zero the treatment helps. Bands or whiskers are 95 % intervals.",
        ),
        key(study),
        h("div", {"class": "charts wide"}, [effect_chart(found, block, words) for block, words in given]),
        [details(words, tables.to_html(tables.effect_table(found, block, words))) for block, words in given],
    )


def two(study: Study) -> Html | None:
    made = tables.ten_table(summary(study))
    return section("two", f"{made.label}, side by side", tables.to_html(made)) if made else None


def robustness(study: Study) -> Html | None:
    made = tables.robustness_table(summary(study))
    if not made:
        return None
    shown, rest = replace(made, blocks=made.blocks[:SHOWN_SERIES]), replace(made, blocks=made.blocks[SHOWN_SERIES:])
    more = details("The other series", tables.to_html(rest)) if rest else None
    return section("robustness", "Changed test images", tables.to_html(shown), more)


def turning(study: Study) -> Html | None:
    charts = drift_charts(study)
    words = (
        "How far the image vector moves when the image is turned: 0 is invariance, 1 is as far as another image. "
        "A disc is shown, so that corners do not count."
    )
    return section("turning", "When the image is turned", h("p", None, words), charts) if charts else None


def prices(study: Study) -> Html:
    made = tables.cost_table(study)
    if not made:
        return section("costs", "What it costs", missing("No backbone was timed."))
    return section("costs", "What it costs", tables.to_html(made), cost_charts(study))


def protocol(study: Study) -> Html:
    data, settings = mapping(study.get("data")), mapping(study.get("settings"))
    classes = [str(name) for name in sequence(data.get("classes"))]
    held = f"{count(data.get('n_train'))} training images, {count(data.get('n_test'))} test images in "
    held += f"{count(data.get('groups_test'))} groups, {len(classes)} classes: {', '.join(classes)}."
    texts = [held, data.get("text"), study.get("budget"), study.get("protocol")]
    texts.append(mapping(summary(study).get("protocol")).get("text"))
    shown = [(breakable(key), breakable(_value(value))) for key, value in settings.items()]
    return section(
        "protocol",
        "How it was done",
        [paragraphs(text) for text in texts if text],
        details("Settings, value by value", facts(shown, "settings")) if shown else None,
    )


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (Mapping, list)) else str(value)


def trainings(study: Study) -> Html:
    cells = mapping(study.get("cells"))
    failed = [str(words) for words in sequence(cells.get("failed"))]
    took = number(cells.get("seconds"))
    words = f"{count(cells.get('done'))} of {count(cells.get('planned'))} trainings are done"
    words += f"; they took {duration(took)} in all." if math.isfinite(took) else "."
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
        ("conclusions", "What follows", conclusions(study)),
        ("curves", "Curves", curves(study)),
        ("crossings", "Crossings", crossings(study)),
        ("effects", "Effects", effects(study)),
        ("two", "Two side by side", two(study)),
        ("robustness", "Robustness", robustness(study)),
        ("turning", "Turning", turning(study)),
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
        h("footer", None, "One file, no script, nothing fetched. Written by saccade compare."),
    )


def to_markdown(study: Study) -> str:
    """The same in tables."""
    found, data = summary(study), mapping(study.get("data"))
    parts = [f"# {QUESTION}", tables.plain(f"Data: {data.get('name', 'unknown')}. {data.get('text', '')}")]
    parts += [f"**{tables.plain(words)}**" for words in cautions(study)]
    said = [f"* {tables.plain(s.get('text'))}" for s in sentences(study)]
    parts += ["## What follows", "\n".join(said) or "Nothing yet."]
    pretraining = mapping(found.get("pretraining"))
    parts += [f"![{tables.plain(name)}](figures/{name}.svg)" for name in figures(study)]
    made = [("Learning curves", tables.curve_table(found)), ("Differences", tables.reference_table(found))]
    made += [("Crossings", tables.crossing_table(found))]
    words = "Augmented minus not augmented"
    made += [("Augmentation", tables.effect_table(found, mapping(found.get("augmentation")), words))]
    made += [
        (words, tables.effect_table(found, mapping(pretraining[key]), words))
        for key, words in PRETRAINED.items()
        if key in pretraining
    ]
    made += [("Two side by side", tables.ten_table(found)), ("Changed test images", tables.robustness_table(found))]
    made += [("Costs", tables.cost_table(study))]
    for title, table in made:
        if table:
            parts += [f"## {title}", tables.to_markdown(table).rstrip()]
    rules = [study.get("budget"), study.get("protocol"), mapping(found.get("protocol")).get("text")]
    parts += ["## How it was done", *(tables.plain(text) for text in rules if text)]
    return "\n\n".join(parts) + "\n"


def figures(study: Study) -> dict[str, str]:
    """The curves as files, for slides and papers: learning curves, and how far the vector moves over the angle."""
    curves = {f"curves-{name}": svg for name, svg in curve_svgs(summary(study)).items()}
    return curves | {f"turned-{name}": svg for name, svg in drift_svgs(study, named=True).items()}


def write_study(folder: Path) -> Path:
    """Write study.html, study.md, study.csv and figures/*.svg from study.json; returns the path of the page.

    Raises UsageError when there is no study.json, StorageError when a file cannot be written.
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
