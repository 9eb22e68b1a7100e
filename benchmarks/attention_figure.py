"""The figure of attention_kinds: work and memory against tokens, images and volumes, log-log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "full, fused": "#1b6ca8",
    "full, written out": "#b3261e",
    "window": "#2e7d32",
    "axial": "#6a4c93",
    "neighbourhood": "#00838f",
    "strided": "#8d6e00",
    "pooling (HVT)": "#c2570c",
    "hybrid stem": "#5d4037",
    "MONAI ViT": "#777777",
    "MONAI SwinUNETR encoder": "#aaaaaa",
}
STYLES = {"full, fused": "-", "full, written out": "-", "MONAI ViT": "--", "MONAI SwinUNETR encoder": "--"}


def draw(table: dict[str, Any], path: Path, mode: str = "train", work: str = "ms") -> None:
    """table   of attention_kinds: axes, kind, mode, "ms" or "gflop" and "mib", points by tokens"""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(work, "operations of a step, GFLOP" if work == "gflop" else "time of a step, ms"), ("mib", "memory, MiB")]
    figure, panels = plt.subplots(2, len(table), figsize=(5.4 * len(table) + 2.6, 8.4), sharex="col", squeeze=False)
    for column, (axes, kinds) in enumerate(table.items()):
        for row, (what, label) in enumerate(rows):
            panel = panels[row][column]
            for kind, modes in kinds.items():
                points = {int(n): float(v) for n, v in modes.get(mode, {}).get(what, {}).items() if float(v) > 0}
                if points:
                    style = STYLES.get(kind, "-")
                    panel.plot(
                        *zip(*sorted(points.items())),
                        style,
                        marker="o",
                        ms=3.5,
                        lw=1.6,
                        color=COLOURS[kind],
                        label=kind,
                    )
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(True, which="major", color="#e4e4e4", lw=0.7)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
            if row == 0:
                panel.set_title("images" if axes == "2D" else "volumes", loc="left", fontweight="bold")
            else:
                panel.set_xlabel("tokens")
                panel.set_xticks(sorted({int(n) for m in kinds.values() for n in m.get(mode, {}).get("mib", {})}))
                panel.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda n, _: f"{int(n):,}"))
                panel.tick_params(axis="x", labelrotation=35)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.86, 0.5), frameon=False)
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
