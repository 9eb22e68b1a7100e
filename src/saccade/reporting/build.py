"""RUN/report.html: one self-contained page of what was learned, measured and seen. No torch, nothing fetched.

Every section reads one file of the run (design: config, env, data, metrics, evaluation, figures). Where the
file is not there, or is cut off by a crash, the section says so in one sentence and the rest is written.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from saccade import runs
from saccade.reporting.classifier import classifier_finding, classifier_numbers, classifier_section
from saccade.reporting.curves import curves
from saccade.reporting.evaluation import evaluation_blocks, finding, points
from saccade.reporting.files import RunFiles, last, mapping, read_run
from saccade.reporting.page import (
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
    share,
    table,
)
from saccade.reporting.slides import FOUND, write_slide_report
from saccade.train.doctor import Doctor, settings_of
from saccade.train.illnesses import Diagnosis
from saccade.viz.figures import data_uri

SHOWN_DUPLICATES, SHOWN_LABELS, SHOWN_DAMAGED = 20, 60, 200


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
    except (KeyError, TypeError, ValueError):  # a file of an older version
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


def pictures(run: RunFiles, kinds: Sequence[str]) -> list[Html]:
    """The figures of these kinds, embedded; one that cannot be read is named instead."""
    return [_figure(run, f) for f in run.figures if f.get("kind") in kinds]


def _figure(run: RunFiles, entry: Mapping[str, Any]) -> Html:
    name = str(entry.get("file") or "")
    folder = (run.folder / "figures").resolve()
    path = (folder / name).resolve()
    # index.json is data: it must not pull files from elsewhere into a page that is handed around.
    inside = path.is_relative_to(folder) and path.suffix in (".png", ".svg")
    if not (inside and path.is_file()):
        return missing(f"The figure {name or 'without a name'} is not in the run folder.")
    data = path.read_bytes()
    kind = "image/svg+xml" if path.suffix == ".svg" else "image/png"
    attributes = {"src": data_uri(data, kind), "alt": str(entry.get("alt") or entry.get("title") or name)}
    if kind == "image/png":
        try:
            with Image.open(io.BytesIO(data)) as picture:
                attributes |= {"width": str(picture.width), "height": str(picture.height)}
        except OSError:
            return missing(f"The figure {name} is damaged.")
    caption = h("figcaption", None, h("strong", None, entry.get("title") or ""), " ", entry.get("caption") or "")
    return h("figure", None, h("div", {"class": "scroll"}, h("img", attributes)), caption)


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


def data_audit(run: RunFiles) -> Html:
    data = run.data
    if not data:
        return section("data", "The images", missing("data.json is not there: nothing is known of the images."))
    duplicates = [ids for ids in sequence(data.get("duplicates")) if isinstance(ids, list)]
    damaged = [d for d in sequence(data.get("damaged")) if isinstance(d, Mapping)]
    items: list[tuple[object, object]] = [
        ("source", breakable(data.get("source", "–"))),
        ("images", count(data.get("images"))),
        ("used", count(data.get("used")) + (f" ({data['split']})" if data.get("split") else "")),
        ("size, rows × columns", _sizes(data.get("size_px"))),
        ("channels", f"{count(data.get('channels'))} · {data.get('dtype', '–')}"),
        ("groups", count(data.get("groups"))),
        ("byte-identical sets", count(len(duplicates))),
        ("damaged files", count(len(damaged))),
    ]
    blocks = [facts(items), *pictures(run, ("data",)), _labels(mapping(data.get("labels")))]
    if duplicates:
        rows = [[str(i + 1), ", ".join(map(str, ids))] for i, ids in enumerate(duplicates[:SHOWN_DUPLICATES])]
        more = f", the first {SHOWN_DUPLICATES} shown" if len(duplicates) > SHOWN_DUPLICATES else ""
        body = table("identical images", ["set", "images"], rows)
        blocks.append(details(f"Byte-identical images ({len(duplicates)} sets{more})", body))
    if damaged:
        rows = [[str(d.get("id")), str(d.get("reason"))] for d in damaged[:SHOWN_DAMAGED]]
        body = table("damaged files", ["file", "reason"], rows)
        blocks.append(details(f"Damaged files, left out ({len(damaged)})", body))
    return section("data", "The images", *blocks)


def _sizes(value: Any) -> str:
    size = mapping(value)
    low, high = size.get("min"), size.get("max")
    if not (isinstance(low, list) and isinstance(high, list)):
        return "–"
    shown = [" × ".join(map(str, v)) for v in (low, high)]
    return f"{shown[0]} px" if low == high else f"{shown[0]} to {shown[1]} px"


def _labels(labels: Mapping[str, Any]) -> Html | None:
    if not labels:
        return missing("The images carry no labels, or none were read. Pretraining does not need them.")
    rows, most = [], max(number(n) for n in labels.values())
    for name, n in list(labels.items())[:SHOWN_LABELS]:
        wide = 100 * number(n) / most if most > 0 and math.isfinite(number(n)) else 0
        bar = h("span", {"class": "bar", "style": f"width:{wide:.1f}%", "aria-hidden": "true"})
        rows.append([breakable(name), count(n), bar])
    more = f" (the first {SHOWN_LABELS} of {len(labels)})" if len(labels) > SHOWN_LABELS else ""
    return table("images of each label", ["label" + more, "images", ""], rows, "bars")


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


def write_report(run: Path) -> Path:
    """Write RUN/report.html from the files of the run, or of heads for slides; returns its path.

    Raises UsageError when the folder is no run, StorageError when the page cannot be written.
    """
    run = Path(run)
    if (run / FOUND).exists():
        return write_slide_report(run)
    target = run / "report.html"
    runs.write_atomic(target, render(read_run(run)))
    return target
