"""The report of a hierarchy: its slides and its levels. Each level also has a run report of its own."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from saccade.base.places import base_name
from saccade.reporting.html import (
    Html,
    breakable,
    count,
    duration,
    facts,
    h,
    missing,
    note,
    number,
    page,
    section,
    sequence,
    table,
)
from saccade.reporting.run_files import RunFiles, last, mapping, read_run
from saccade.reporting.run_report import repeat, title_of, warnings
from saccade.reporting.section_curves import curves
from saccade.reporting.section_data import slide_blocks

SAMPLES = {"tile": "tiles", "region": "regions", "slide": "slides"}


def render(folder: Path) -> str:
    """The page as text. Levels that were given as a MODEL, or that are not trained yet, are marked."""
    hierarchy = read_run(folder)
    levels = {level: read_run(folder / level) for level in SAMPLES if (folder / level / "config.yaml").exists()}
    given = {level: str(name) for level in SAMPLES if (name := mapping(hierarchy.hierarchy.get("hipt")).get(level))}
    parts = [
        ("levels", "Levels", _levels(levels, given)),
        ("slides", "Slides", _slides(hierarchy)),
        *((level, level.capitalize() + " level", curves(run, level, f"Training of the {level} level"))
          for level, run in levels.items()),
        ("worth", "Next steps", _worth(folder)),
        ("repeat", "Reproduce", repeat(_settings(hierarchy, levels))),
    ]  # fmt: skip
    name = folder.resolve().name
    return page(
        f"{name} · hierarchy · saccade",
        "en",
        h(
            "header",
            None,
            h(
                "p",
                {"class": "eyebrow"},
                "saccade",
                h("span", None, f" · {base_name(str(hierarchy.data.get('source', 'hierarchy')))}"),
            ),
            h("h1", None, breakable(name)),
            h("p", {"class": "finding"}, finding(hierarchy, levels, given)),
            [
                note(h("strong", None, f"Warning, {level} level. "), words)
                for level, run in levels.items()
                for words in warnings(run)
            ],
            facts(_numbers(hierarchy, levels), "numbers"),
            h("nav", {"aria-label": "Sections"}, [h("a", {"href": f"#{key}"}, title) for key, title, _ in parts]),
        ),
        h("main", None, [body for _, _, body in parts]),
        h("footer", None, "One file without scripts or external resources. Written by saccade report."),
    )


def finding(hierarchy: RunFiles, levels: dict[str, RunFiles], given: dict[str, str]) -> str:
    """The training of the levels in one sentence."""
    learned = [f"{count(_used(run))} {SAMPLES[level]}" for level, run in levels.items()]
    slides = len(sequence(hierarchy.data.get("files")))
    words = (
        f"A hierarchy over {count(slides)} slides, without labels" if slides else "A hierarchy without trained levels"
    )
    if learned:
        words += ": trained on " + ", then on ".join(learned)
    taken = [f"the {level} level was given" for level, model in given.items() if model != "none"]
    return "; ".join([words, *taken]) + "."


def _used(run: RunFiles) -> float:
    return number(run.data.get("used"))


def _numbers(hierarchy: RunFiles, levels: dict[str, RunFiles]) -> list[tuple[object, object]]:
    slides = [mapping(line) for line in sequence(mapping(hierarchy.data.get("slides")).get("slides"))]
    seconds = [last(run, "seconds") for run in levels.values()]
    items: list[tuple[object, object]] = [("slides", count(len(sequence(hierarchy.data.get("files")))))]
    if slides:
        items.append(("tiles", count(sum(number(line.get("tiles")) for line in slides))))
    items.append(("training time", duration(sum(s for s in seconds if math.isfinite(s)))))
    return items


def _levels(levels: dict[str, RunFiles], given: dict[str, str]) -> Html:
    rows = []
    for level, run in levels.items():
        rows.append(
            [
                h("a", {"href": f"{level}/report.html"}, f"{level} level"),
                breakable(title_of(run)),
                f"{count(_used(run))} {SAMPLES[level]}",
                count(last(run, "step")),
                duration(last(run, "seconds")),
                _figure(last(run, "rank"), 1),
                _figure(last(run, "agreement"), 3),
            ]
        )
    head = ["level", "method", "trained on", "steps", "time", "effective rank", "cosine similarity of two views"]
    blocks: list[object] = [table("the levels", head, rows)] if rows else [missing("No level is trained yet.")]
    for level in SAMPLES:
        if given.get(level) == "none" or (level == "slide" and level not in levels and level not in given):
            blocks.append(h("p", None, "No slide level: a slide is the mean of its regions."))
        elif level in given:
            blocks.append(
                h("p", None, f"The {level} level is ", h("code", None, given[level]), " (not trained further).")
            )
        elif level not in levels:
            blocks.append(missing(f"The {level} level is not trained yet."))
    return section("levels", "The levels", *blocks)


def _figure(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _slides(hierarchy: RunFiles) -> Html:
    blocks = slide_blocks(hierarchy) or [missing("No slides are recorded yet.")]
    return section("slides", "The slides", *blocks)


def _settings(hierarchy: RunFiles, levels: dict[str, RunFiles]) -> RunFiles:
    """The hierarchy with the settings of all levels, and the command and machine of the first."""
    settings = {f"{level}.{name}": values for level, run in levels.items() for name, values in run.config.items()}
    env = next((run.env for run in levels.values()), hierarchy.env)
    return dataclasses.replace(hierarchy, env=env, config=settings)


def _worth(folder: Path) -> Html:
    name = folder.resolve().name
    text = (
        "With slide labels, the first command trains heads and evaluates them by nested cross-validation, against "
        "mean pooling and random weights; the second draws the attention of the levels."
    )
    commands = [f"saccade finetune {name} SLIDES --out heads", f"saccade attend {name} SLIDE --out maps"]
    return section(
        "worth",
        "Evaluation and attention",
        h("p", None, text),
        h("pre", {"tabindex": "0"}, h("code", None, "\n".join(commands))),
    )
