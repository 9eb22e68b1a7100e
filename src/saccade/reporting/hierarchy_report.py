"""The page of a hierarchy: the slides, and its levels one above the other. Each level has a page of its own beside."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

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
    """The page as text. A level that was given as a MODEL, or is not trained yet, is said to be so."""
    whole = read_run(folder)
    levels = {level: read_run(folder / level) for level in SAMPLES if (folder / level / "config.yaml").exists()}
    given = {level: str(name) for level in SAMPLES if (name := mapping(whole.hierarchy.get("hipt")).get(level))}
    parts = [
        ("levels", "Levels", _levels(levels, given)),
        ("slides", "Slides", _slides(whole)),
        *((level, level.capitalize() + " level", curves(run, level, f"While the {level} level learned"))
          for level, run in levels.items()),
        ("worth", "What it is worth", _worth(folder)),
        ("repeat", "Repeat", repeat(_settings(whole, levels))),
    ]  # fmt: skip
    name = folder.resolve().name
    return page(
        f"{name} · hierarchy · saccade",
        "en",
        h(
            "header",
            None,
            h("p", {"class": "eyebrow"}, "saccade", h("span", None, f" · {whole.data.get('source', 'hierarchy')}")),
            h("h1", None, breakable(name)),
            h("p", {"class": "finding"}, finding(whole, levels, given)),
            [
                note(h("strong", None, f"Look here, {level} level. "), words)
                for level, run in levels.items()
                for words in warnings(run)
            ],
            facts(_numbers(whole, levels), "numbers"),
            h("nav", {"aria-label": "Sections"}, [h("a", {"href": f"#{key}"}, title) for key, title, _ in parts]),
        ),
        h("main", None, [body for _, _, body in parts]),
        h("footer", None, "One file, no script, nothing fetched. Written by saccade report."),
    )


def finding(whole: RunFiles, levels: dict[str, RunFiles], given: dict[str, str]) -> str:
    """What was learned, in one plain sentence."""
    learned = [f"{count(_used(run))} {SAMPLES[level]}" for level, run in levels.items()]
    slides = len(sequence(whole.data.get("files")))
    words = f"A hierarchy over {count(slides)} slides, without labels" if slides else "A hierarchy that has only begun"
    if learned:
        words += ": learned from " + ", then from ".join(learned)
    taken = [f"the {level} level was there already" for level, model in given.items() if model != "none"]
    return "; ".join([words, *taken]) + "."


def _used(run: RunFiles) -> float:
    return number(run.data.get("used"))


def _numbers(whole: RunFiles, levels: dict[str, RunFiles]) -> list[tuple[object, object]]:
    slides = [mapping(line) for line in sequence(mapping(whole.data.get("slides")).get("slides"))]
    seconds = [last(run, "seconds") for run in levels.values()]
    found: list[tuple[object, object]] = [("slides", count(len(sequence(whole.data.get("files")))))]
    if slides:
        found.append(("tiles", count(sum(number(line.get("tiles")) for line in slides))))
    found.append(("training time", duration(sum(s for s in seconds if math.isfinite(s)))))
    return found


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
    head = ["level", "how", "learned from", "steps", "time", "effective rank", "agreement of two views"]
    blocks: list[object] = [table("the levels", head, rows)] if rows else [missing("No level has begun to learn.")]
    for level in SAMPLES:
        if given.get(level) == "none" or (level == "slide" and level not in levels and level not in given):
            blocks.append(h("p", None, "No slide level: a slide is the mean of its regions."))
        elif level in given:
            blocks.append(h("p", None, f"The {level} level is ", h("code", None, given[level]), ", as it was."))
        elif level not in levels:
            blocks.append(missing(f"The {level} level is not trained yet."))
    return section("levels", "The levels", *blocks)


def _figure(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _slides(whole: RunFiles) -> Html:
    blocks = slide_blocks(whole) or [missing("Nothing is known of the slides yet.")]
    return section("slides", "The slides", *blocks)


def _settings(whole: RunFiles, levels: dict[str, RunFiles]) -> RunFiles:
    """The hierarchy with the command and machine of its first level and the settings of all of them."""
    found = {f"{level}.{name}": values for level, run in levels.items() for name, values in run.config.items()}
    env = next((run.env for run in levels.values()), whole.env)
    return dataclasses.replace(whole, env=env, config=found)


def _worth(folder: Path) -> Html:
    name = folder.resolve().name
    text = (
        "With labels of slides the first command trains heads and measures them by nested cross-validation, beside "
        "mean pooling and random weights; the second draws where the levels look."
    )
    commands = [f"saccade finetune {name} SLIDES --out heads", f"saccade attend {name} SLIDE --out maps"]
    return section(
        "worth",
        "What it is worth, and where it looks",
        h("p", None, text),
        h("pre", {"tabindex": "0"}, h("code", None, "\n".join(commands))),
    )
