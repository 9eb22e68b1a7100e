"""RUN/report.html: one self-contained page of the training, the evaluation and the figures of a run. No torch.

Every section reads one file of the run (config, env, data, metrics, evaluation, figures). Where it is missing or
truncated, the section says so and the rest is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from saccade.base.places import base_name
from saccade.errors import UsageError
from saccade.methods.diagnosis import Diagnosis
from saccade.reporting.evaluation_results import finding, points
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
    percent,
    section,
    sequence,
)
from saccade.reporting.run_files import RunFiles, last, mapping
from saccade.reporting.section_classifier import classifier_finding, classifier_numbers, classifier_section
from saccade.reporting.section_curves import curves
from saccade.reporting.section_data import data_audit
from saccade.reporting.section_evaluation import evaluation_blocks
from saccade.reporting.section_figures import pictures
from saccade.train.diagnose import Doctor, settings_of

# --- head ----------------------------------------------------------------------------------------


def title_of(run: RunFiles) -> str:
    method, backbone = run.setting("train", "method"), run.setting("model", "backbone")
    words = " ".join(str(w) for w in (method, backbone) if w)
    return words or run.folder.resolve().name


def headline(run: RunFiles) -> str:
    """The main result in one sentence; before any evaluation, what was trained."""
    if run.evaluation is not None:
        return finding(run.evaluation)
    trained = classifier_finding(str(run.setting("model", "backbone") or title_of(run)), run.classifier)
    if trained is not None:
        return trained
    images, steps = number(run.data.get("used")), last(run, "step")
    learned = f"{title_of(run)} was trained"
    if math.isfinite(images):
        learned += (
            f" on {count(images)} images with{'' if run.setting('train', 'method') == 'supervised' else 'out'} labels"
        )
    if math.isfinite(steps):
        learned += f" for {count(steps)} steps"
    return learned + "; not evaluated yet."


def warnings(run: RunFiles) -> list[str]:
    """Problems in the logged figures: the doctor's findings, a non-finite loss, automatic repairs."""
    texts = []
    loss = number(run.metrics[-1].get("loss")) if run.metrics else math.nan
    if run.metrics and "loss" in run.metrics[-1] and not math.isfinite(loss):
        texts.append("The last logged loss is not finite.")
    texts += [entry.text().replace("\n", " ") for entry in diagnoses(run)]
    for entry in run.repairs:
        changes = ", ".join(f"{key}={value}" for key, value in mapping(entry.get("change")).items())
        words = (
            f"{entry.get('name')} since step {entry.get('since')}: training resumed from step {entry.get('back_to')}"
        )
        texts.append(f"{words} with {changes}.")
    return texts


def diagnoses(run: RunFiles) -> list[Diagnosis]:
    """The doctor's findings in the logged figures; none where settings are missing.

    A finished run has recorded them; else the figures are examined, which loads the method and torch.
    """
    if run.doctor and number(run.doctor.get("step")) == last(run, "step"):
        try:
            return [Diagnosis(**entry) for entry in sequence(run.doctor.get("diagnoses"))]
        except TypeError:  # written by another version
            pass
    method = run.setting("train", "method")
    if not all(isinstance(run.config.get(name), Mapping) for name in ("train", "optim", method)):
        return []
    try:
        watch = Doctor(settings_of(run.config, int(number(run.data.get("used", 0)))), [], stop=False)
    except (KeyError, TypeError, ValueError, UsageError):  # an older version, or a method that is not installed
        return []
    records = ({key: number(value) for key, value in line.items()} for line in run.metrics)
    return [diagnosis for line in records for diagnosis in watch.look(line)]


def badges(entries: Sequence[Diagnosis]) -> Html | None:
    """The doctor's findings as badges, for the head of a page and above tables."""
    if not entries:
        return None
    names = [h("span", {"class": "badge"}, f"{entry.name} since step {entry.since:,}") for entry in entries]
    return h("p", {"class": "doctor"}, "Doctor: ", names)


def key_numbers(run: RunFiles) -> list[tuple[object, object]]:
    """Key figures for the head of the page."""
    items = classifier_numbers(run.classifier)
    if run.evaluation is not None:
        few = run.evaluation.fractions[-1]
        row = run.evaluation.row(run.evaluation.primary, run.evaluation.probes[0], few)
        if row is not None:
            items.append(
                (
                    f"{run.evaluation.metric.replace('_', ' ')}, {percent(few)} of labels"
                    + (" †" if run.evaluation.protocol.get("overlap") else ""),
                    _percent(row.get("mean")),
                )
            )
    knn = last(run, "knn")
    if math.isfinite(knn):
        items.append(("live k-NN accuracy", _percent(knn)))
    if "used" in run.data:
        learned = number(run.data["used"]) - (number(run.data.get("validation")) if "validation" in run.data else 0)
        items.append(("training images", count(learned)))
    for name, value in (
        ("steps", count(last(run, "step"))),
        ("training time", duration(last(run, "seconds"))),
        ("images per second", count(last(run, "images_per_second"))),
    ):
        if value != "–":
            items.append((name, value))
    return items


def _percent(value: Any) -> str:
    text = points(number(value))
    return text if text == "–" else f"{text} %"


def origin(run: RunFiles) -> Html | None:
    """Says of images that saccade draws itself that they are not real."""
    source = str(run.data.get("source") or run.setting("data", "source") or "")
    drawn = source if source.startswith("synthetic:") else str(run.notes.get("drawn") or "")
    if not drawn:
        return None
    kind = drawn.removeprefix("synthetic:").partition("?")[0]
    return note(
        h("strong", None, "Drawn, not real. "),
        f"These images ({kind}) are drawn by saccade: no figure on this page says anything about real data.",
    )


def head_blocks(run: RunFiles, sections: Sequence[tuple[str, str]]) -> list[object]:
    source = base_name(str(run.data.get("source") or run.setting("data", "source") or ""))
    links = [h("a", {"href": f"#{key}"}, name) for key, name in sections]
    return [
        h("p", {"class": "eyebrow"}, "saccade", h("span", None, f" · {source}") if source else None),
        h("h1", None, breakable(title_of(run))),
        origin(run),
        h("p", {"class": "finding"}, headline(run)),
        badges(diagnoses(run)),
        h(
            "p",
            {"class": "rule"},
            "A difference is reported only where its paired 95 % interval excludes zero.",
        )
        if run.evaluation is not None and run.evaluation.differences
        else None,
        [note(h("strong", None, "Warning. "), words) for words in warnings(run)],
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
                "Not evaluated yet. Run ",
                h("code", None, command),
                " with labelled images, then saccade report again.",
            )
        ]
    else:
        blocks = [badges(diagnoses(run)), *evaluation_blocks(run.evaluation)]
    if run.evaluation_grey is not None:
        blocks.append(h("h3", None, "Without colour"))
        blocks.append(h("p", None, "The same images in grey: accuracy without colour information."))
        blocks += evaluation_blocks(run.evaluation_grey)
    return section("labels", "Few-label evaluation", *blocks)


def _attention_title(run: RunFiles) -> str:
    """A CNN has no attention: its maps are cosine similarities."""
    captions = [str(f.get("caption") or "") for f in run.figures if f.get("kind") == "attention"]
    similar = bool(captions) and all(text.startswith("Similarity") for text in captions)
    return "Token similarity" if similar else "Attention"


def looking(run: RunFiles) -> Html:
    figures = pictures(run, ("attention", "segmentation"))
    if not figures:
        command = f"saccade attend {run.folder.name} IMAGE"
        figures = [missing("No attention maps yet. Run ", h("code", None, command), " for one image.")]
    return section("attention", _attention_title(run), h("div", {"class": "panels"}, figures))


def neighbours(run: RunFiles) -> Html:
    figures = pictures(run, ("neighbours",)) or [missing("No nearest neighbours yet; saccade evaluate draws them.")]
    return section("neighbours", "Nearest neighbours", *figures)


def reasons(run: RunFiles) -> Html | None:
    text = run.notes.get("why_network")
    return section("why", "Choice of the network", paragraphs(text)) if text else None


def protocol(run: RunFiles) -> Html:
    if run.evaluation is None:
        return section("protocol", "Protocol", missing("Not evaluated yet."))
    given = run.evaluation.protocol
    values = {k: v for k, v in given.items() if k != "text"}
    return section(
        "protocol",
        "Protocol",
        paragraphs(given.get("text") or "The evaluation recorded no protocol text."),
        details("Protocol settings", _settings(values)) if values else None,
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
        blocks.append(details("Resolved configuration", h("div", {"class": "groups"}, inside)))
    else:
        blocks.append(missing("config.yaml is missing or unreadable."))
    if run.env:
        plain = {k: v for k, v in run.env.items() if k not in ("versions", "command")}
        versions = mapping(run.env.get("versions"))
        inside = [h("div", None, h("h4", None, "machine"), _settings(plain))]
        if versions:
            inside.append(h("div", None, h("h4", None, "versions"), _settings(versions)))
        blocks.append(details("Machine and versions", h("div", {"class": "groups"}, inside)))
    return section("repeat", "Reproduce", *blocks)


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
        ("repeat", "Reproduce", repeat(run)),
    ]
    present = [(key, name) for key, name, body in parts if body is not None]
    return page(
        f"{title_of(run)} · saccade",
        "en",
        h("header", None, head_blocks(run, present)),
        h("main", None, [body for _, _, body in parts]),
        h("footer", None, "One file without scripts or external resources. Written by saccade report."),
    )
