"""RUN/report.html: one self-contained page of what was learned, measured and seen. No torch, nothing fetched.

Every section reads one file of the run (design: config, env, data, metrics, evaluation, figures). Where the
file is not there, or is cut off by a crash, the section says so in one sentence and the rest is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from saccade.errors import UsageError
from saccade.methods.diagnosis import Diagnosis
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
    share,
)
from saccade.reporting.run_files import RunFiles, last, mapping
from saccade.reporting.section_classifier import classifier_finding, classifier_numbers, classifier_section
from saccade.reporting.section_curves import curves
from saccade.reporting.section_data import data_audit
from saccade.reporting.section_evaluation import evaluation_blocks, finding, points
from saccade.reporting.section_figures import pictures
from saccade.train.diagnose import Doctor, settings_of

# --- head ----------------------------------------------------------------------------------------


def title_of(run: RunFiles) -> str:
    method, backbone = run.setting("train", "method"), run.setting("model", "backbone")
    words = " ".join(str(w) for w in (method, backbone) if w)
    return words or run.folder.resolve().name


def headline(run: RunFiles) -> str:
    """The finding in one plain sentence; before any evaluation, what was done."""
    if run.evaluation is not None:
        return finding(run.evaluation)
    trained = classifier_finding(str(run.setting("model", "backbone") or title_of(run)), run.classifier)
    if trained is not None:
        return trained
    images, steps = number(run.data.get("used")), last(run, "step")
    learned = f"{title_of(run)} has learned"
    if math.isfinite(images):
        learned += (
            f" from {count(images)} images with{'' if run.setting('train', 'method') == 'supervised' else 'out'} labels"
        )
    if math.isfinite(steps):
        learned += f" for {count(steps)} steps"
    return learned + "; what it is worth has not been measured yet."


def warnings(run: RunFiles) -> list[str]:
    """Trouble the figures show: what the doctor names, or a loss that is not finite."""
    found = []
    loss = number(run.metrics[-1].get("loss")) if run.metrics else math.nan
    if run.metrics and "loss" in run.metrics[-1] and not math.isfinite(loss):
        found.append("The last logged loss is not finite: the run stopped or lost its way there.")
    found += [one.text().replace("\n", " ") for one in illnesses(run)]
    for one in run.repairs:
        changes = ", ".join(f"{key}={value}" for key, value in mapping(one.get("change")).items())
        words = f"{one.get('name')} since step {one.get('since')}: the run went back to step {one.get('back_to')}"
        found.append(f"{words} and on with {changes}.")
    return found


def illnesses(run: RunFiles) -> list[Diagnosis]:
    """What the doctor finds in the logged figures; nothing where the settings are not all there."""
    method = run.setting("train", "method")
    if not all(isinstance(run.config.get(name), Mapping) for name in ("train", "optim", method)):
        return []
    try:
        watch = Doctor(settings_of(run.config, int(number(run.data.get("used", 0)))), [], stop=False)
    except (KeyError, TypeError, ValueError, UsageError):  # an older version, or a method that is not installed
        return []
    plain = ({key: number(value) for key, value in line.items()} for line in run.metrics)
    return [one for line in plain for one in watch.look(line)]


def key_numbers(run: RunFiles) -> list[tuple[object, object]]:
    found = classifier_numbers(run.classifier)
    if run.evaluation is not None:
        few = run.evaluation.fractions[-1]
        row = run.evaluation.row(run.evaluation.primary, run.evaluation.probes[0], few)
        if row is not None:
            found.append(
                (
                    f"{run.evaluation.metric.replace('_', ' ')}, {share(few)} of labels"
                    + (" †" if run.evaluation.protocol.get("overlap") else ""),
                    _percent(row.get("mean")),
                )
            )
    knn = last(run, "knn")
    if math.isfinite(knn):
        found.append(("k-NN while training", _percent(knn)))
    if "used" in run.data:
        learned = number(run.data["used"]) - (number(run.data.get("validation")) if "validation" in run.data else 0)
        found.append(("images learned from", count(learned)))
    for name, value in (
        ("steps", count(last(run, "step"))),
        ("training time", duration(last(run, "seconds"))),
        ("images a second", count(last(run, "images_per_second"))),
    ):
        if value != "–":
            found.append((name, value))
    return found


def _percent(value: Any) -> str:
    shown = points(number(value))
    return shown if shown == "–" else f"{shown} %"


def head_blocks(run: RunFiles, sections: Sequence[tuple[str, str]]) -> list[object]:
    source = run.data.get("source") or run.setting("data", "source")
    links = [h("a", {"href": f"#{key}"}, name) for key, name in sections]
    return [
        h("p", {"class": "eyebrow"}, "saccade", h("span", None, f" · {source}") if source else None),
        h("h1", None, breakable(title_of(run))),
        h("p", {"class": "finding"}, headline(run)),
        h(
            "p",
            {"class": "rule"},
            "A difference is claimed only where its paired 95 % interval excludes zero.",
        )
        if run.evaluation is not None and run.evaluation.differences
        else None,
        [note(h("strong", None, "Look here. "), words) for words in warnings(run)],
        facts(key_numbers(run), "numbers"),
        h("nav", {"aria-label": "Sections"}, links),
    ]


# --- sections ------------------------------------------------------------------------------------


def low_labels(run: RunFiles) -> Html:
    blocks: list[object]
    if run.evaluation is None:
        command = f"saccade evaluate {run.folder.name} DATA"
        blocks = [
            missing(
                "Not measured yet. Run ",
                h("code", None, command),
                " with labelled images, then report again.",
            )
        ]
    else:
        blocks = evaluation_blocks(run.evaluation)
    if run.evaluation_grey is not None:
        blocks.append(h("h3", None, "Without colour"))
        blocks.append(h("p", None, "The same images in grey: what is left when colour cannot help."))
        blocks += evaluation_blocks(run.evaluation_grey)
    return section("labels", "With few labels", *blocks)


def looking(run: RunFiles) -> Html:
    found = pictures(run, ("attention", "segmentation"))
    if not found:
        command = f"saccade attend {run.folder.name} IMAGE"
        found = [missing("No attention panels were drawn. Run ", h("code", None, command), " for any image.")]
    return section("attention", "Where the model looks", h("div", {"class": "panels"}, found))


def neighbours(run: RunFiles) -> Html:
    found = pictures(run, ("neighbours",)) or [
        missing("No nearest neighbours were drawn; they come with an evaluation.")
    ]
    return section("neighbours", "What it finds alike", *found)


def reasons(run: RunFiles) -> Html | None:
    text = run.notes.get("why_network")
    return section("why", "Why this network", paragraphs(text)) if text else None


def protocol(run: RunFiles) -> Html:
    if run.evaluation is None:
        return section("protocol", "Protocol", missing("No protocol yet: nothing was measured."))
    given = run.evaluation.protocol
    shown = {k: v for k, v in given.items() if k != "text"}
    return section(
        "protocol",
        "Protocol",
        paragraphs(given.get("text") or "The evaluation wrote no text of its protocol."),
        details("Protocol, value by value", _settings(shown)) if shown else None,
    )


def _settings(values: Mapping[str, Any]) -> Html:
    return facts([(breakable(k), breakable(_value(v))) for k, v in values.items()], "settings")


def _value(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return json.dumps(value, ensure_ascii=False)
    return "–" if value is None or value == "" else str(value)


def repeat(run: RunFiles) -> Html:
    blocks: list[object] = []
    command = run.env.get("command")
    if command:
        blocks.append(h("pre", {"tabindex": "0"}, h("code", None, command)))
    else:
        blocks.append(missing("The command was not recorded."))
    if run.config:
        groups = [(k, v) for k, v in run.config.items() if isinstance(v, Mapping)]
        inside = [h("div", None, h("h4", None, name), _settings(values)) for name, values in groups]
        blocks.append(details("Configuration, every value resolved", h("div", {"class": "groups"}, inside)))
    else:
        blocks.append(missing("config.yaml is not there or is not readable."))
    if run.env:
        plain = {k: v for k, v in run.env.items() if k not in ("versions", "command")}
        versions = mapping(run.env.get("versions"))
        inside = [h("div", None, h("h4", None, "machine"), _settings(plain))]
        if versions:
            inside.append(h("div", None, h("h4", None, "versions"), _settings(versions)))
        blocks.append(details("Machine and versions", h("div", {"class": "groups"}, inside)))
    return section("repeat", "Do it again", *blocks)


# --- page ----------------------------------------------------------------------------------------


def render(run: RunFiles) -> str:
    """The page as text; the same run gives the same bytes."""
    why = reasons(run)
    parts: list[tuple[str, str, Html | None]] = [
        ("classifier", "Classifier", classifier_section(run.classifier)),
        ("labels", "Few labels", low_labels(run)),
        ("attention", "Attention", looking(run)),
        ("neighbours", "Neighbours", neighbours(run)),
        ("curves", "Curves", curves(run)),
        ("data", "Images", data_audit(run)),
        ("why", "Network", why),
        ("protocol", "Protocol", protocol(run)),
        ("repeat", "Repeat", repeat(run)),
    ]
    present = [(key, name) for key, name, body in parts if body is not None]
    return page(
        f"{title_of(run)} · saccade",
        "en",
        h("header", None, head_blocks(run, present)),
        h("main", None, [body for _, _, body in parts]),
        h("footer", None, "One file, no script, nothing fetched. Written by saccade report."),
    )
