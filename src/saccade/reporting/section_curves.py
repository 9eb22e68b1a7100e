"""The report section with the training curves of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping

from saccade.reporting.html import Html, count, h, missing, number, section, table
from saccade.reporting.run_files import RunFiles, mapping, uniform_entropy
from saccade.viz.charts import curve_svg, short_number

SMALL = (240, 165)


def curves(run: RunFiles, key: str = "curves", title: str = "Training curves") -> Html:
    if not run.metrics:
        return section(key, title, missing("metrics.jsonl is missing or has no complete line."))
    uniform = {"uniform output, ln K": uniform_entropy(run)}
    entropies = {"teacher": "teacher_entropy", "student": "student_entropy"}
    large = [
        _curve(run, "Loss", {"loss": "loss"}, uniform),
        _curve(run, "k-NN accuracy, live probe", {"k-NN": "knn"}, unit="in %", scale=100),
        _curve(run, "Accuracy", {"batch": "accuracy", "validation": "val_balanced_accuracy"}, unit="in %", scale=100),
        _curve(run, "Validation loss", {"loss": "val_loss"}),
        _curve(run, "Entropy", entropies, uniform, unit="nats"),
        _curve(run, "Effective rank", {"rank": "rank"}),
        _curve(run, "Cosine similarity of two views", {"agreement": "agreement"}),
    ]
    small = [
        _curve(run, "Learning rate", {"lr": "lr"}, size=SMALL),
        _curve(run, "Weight decay", {"weight decay": "weight_decay"}, size=SMALL),
        _curve(run, "Teacher momentum", {"momentum": "momentum"}, size=SMALL),
        _curve(run, "Images per second", {"speed": "images_per_second"}, size=SMALL, from_zero=True),
    ]
    return section(
        key,
        title,
        h("div", {"class": "charts"}, large),
        h("h3", None, "Schedules and speed"),
        h("div", {"class": "charts small"}, small),
        _checkpoint(run),
    )


def _checkpoint(run: RunFiles) -> Html | None:
    """The checkpoint that became the model, beside the last one."""
    chosen, end = mapping(run.chosen.get("chosen")), mapping(run.chosen.get("last"))
    if not chosen or not end:
        return None
    checkpoints = {"the model": chosen} | ({} if chosen == end else {"the last one": end})
    columns = {"agreement": "cosine similarity of two views", "rank": "effective rank", "knn": "k-NN in %"}
    present = [key for key in columns if key in end]
    rows = [
        [
            f"{name}, step {count(figures.get('step'))}",
            *(_number(100 * number(figures.get(key)) if key == "knn" else number(figures.get(key))) for key in present),
        ]
        for name, figures in checkpoints.items()
    ]
    body = table("the checkpoint that became the model", ["checkpoint", *(columns[key] for key in present)], rows)
    text = f"Selection rule: {run.chosen.get('rule', '')}."
    if "knn" in present:
        text += " k-NN is for comparison only."
    return h("div", None, h("h3", None, "Selected checkpoint"), body, h("p", None, text))


def _number(value: float) -> str:
    return short_number(value, digits=3) if math.isfinite(value) else "–"


def _curve(
    run: RunFiles,
    title: str,
    keys: Mapping[str, str],
    reference: Mapping[str, float] | None = None,
    *,
    unit: str = "",
    scale: float = 1.0,
    size: tuple[int, int] = (400, 235),
    from_zero: bool = False,
) -> Html | None:
    """A chart of logged figures over steps; None when none of them was logged."""
    series = {}
    for name, key in keys.items():
        lines = [line for line in run.metrics if key in line]
        if any(math.isfinite(number(line[key])) for line in lines):
            steps = [number(line["step"]) for line in lines]
            series[name] = (steps, [scale * number(line[key]) for line in lines])
    if not series:
        return None
    return Html(
        curve_svg(
            series,
            title=title,
            x_label="step",
            y_label=unit,
            reference=reference,
            size=size,
            from_zero=from_zero,
        )
    )
