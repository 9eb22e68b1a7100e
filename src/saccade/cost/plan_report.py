"""The price of a run, found and measured: as lines for people and as a dict for programs. Made by planning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saccade.base import frames
from saccade.cost import system_memory
from saccade.cost.alternatives import Alternative
from saccade.cost.explain import sentence
from saccade.cost.step import Price, Workload
from saccade.cost.worked_examples import lookup_table_size


@dataclass(frozen=True)
class Speed:
    """What the measurement found: seconds of one step as planned, operations a second, and how it was measured."""

    seconds: float
    rate: float
    how: str


def _shown_views(load: Workload) -> str:
    side = " x ".join
    views = []
    for name, (count, px) in (("global", load.global_views), ("local", load.local_views)):
        if count:
            views.append(f"{count} {name} of {side([str(px)] * load.axes)}")
    return " and ".join(views)


def format_operations(count: float) -> str:
    """12.3 TFLOP."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count / 1e6:,.3g} MFLOP"


def format_duration(seconds: float) -> str:
    """3.4 min."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


@dataclass(frozen=True)
class Planned(frames.Tabular):
    """The price of a run; ``text`` for people, ``to_dict`` for programs.

    images   that an epoch has (``assumed`` where no data say it)      bare   bytes of a process without a network
    cache    bytes of all decoded images, of which up to ``data.cache_mib`` are held in memory
    """

    load: Workload
    price: Price
    images: int
    assumed: bool
    bare: int
    held: int
    cache: int
    keep: int
    memory: int | None
    batch: int | None
    patch: int | None
    others: list[Alternative]
    speed: Speed | None

    @property
    def peak(self) -> int:
        return self.bare + self.held + self.price.peak

    @property
    def steps_per_epoch(self) -> float:
        return self.images / (self.load.batch * self.load.accumulate)

    @property
    def checkpoints(self) -> int:
        """Bytes on disk: those that are kept, one that is being written, and the model."""
        return (self.keep + 1) * self.price.state + 4 * self.price.parameters

    def to_dict(self) -> dict[str, Any]:
        price, load = self.price, self.load
        epoch = self.steps_per_epoch
        return {
            "backbone": load.network.name,
            "method": load.method,
            "axes": load.axes,
            "views": {"global": list(load.global_views), "local": list(load.local_views)},
            "batch": load.batch,
            "accumulate": load.accumulate,
            "precision": "bf16" if load.bf16 else "fp32",
            "tokens": {"global": price.tokens[0], "local": price.tokens[1]},
            "parameters": price.parameters,
            "learned": price.learned,
            "flops": {"step": price.total_flops, "epoch": round(epoch * price.total_flops), "by": dict(price.flops)},
            "memory": {
                "peak": self.peak,
                "step": price.peak,
                "bare_process": self.bare,
                "decoded_images": self.held,
                "by": dict(price.memory),
                "attention_matrices_if_written_out": price.attention,
                "limit": self.memory,
                "fits": None if self.memory is None else self.peak <= self.memory,
            },
            "dominating": sentence(price, load),
            "images": self.images,
            "padded_px": list(load.padded_px),
            "seconds": None
            if self.speed is None
            else {"step": self.speed.seconds, "epoch": epoch * self.speed.seconds, "measured": self.speed.how},
            "disk": {"checkpoints": self.checkpoints, "decoded_images": self.cache - self.held},
            "largest_batch": self.batch,
            "smallest_patch": self.patch,
            "alternatives": [
                {
                    "name": a.name,
                    "how": a.how,
                    "flops": a.price.total_flops,
                    "peak": self.bare + self.held + a.price.peak,
                }
                for a in self.others
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """This setting and its cheaper alternatives: operations per step, and peak memory in bytes."""
        alternatives = self.to_dict()["alternatives"]
        setting = {"name": self.load.network.name, "how": "", "flops": self.price.total_flops, "peak": self.peak}
        return [setting, *alternatives]

    def frame_columns(self) -> dict[str, list[Any]]:
        """The setting and its alternatives."""
        return frames.columns_of(self.rows())

    def _repr_html_(self) -> str:
        return frames.text_to_html(self.text())

    def text(self) -> str:
        price, load = self.price, self.load
        network = load.network
        lines = [
            f"{network.name}, {load.method}, {_shown_views(load)}, batch {load.batch}, "
            f"{'bf16' if load.bf16 else 'fp32'} on {load.device}",
            "",
        ]
        tokens = f"{price.tokens[0]:,} a global view" + (
            f", {price.tokens[1]:,} a local one" if price.tokens[1] else ""
        )
        lines.append(f"tokens        {tokens}")
        lines.append(f"parameters    {price.parameters:,} in the backbone, {price.learned:,} learned in all")
        if max(load.image_sides, default=0) > load.image_px:
            sides = " x ".join(map(str, load.image_sides))
            lines.append(
                f"images        a batch is padded to {sides} px, the largest rows and columns that it may hold"
            )
        epoch = self.steps_per_epoch
        of = f"{'each ' if self.assumed else ''}{self.images:,} images"
        lines.append(
            f"operations    {format_operations(price.total_flops)} a step, "
            f"{format_operations(epoch * price.total_flops)} for {of}"
        )
        if self.speed is not None:
            lines.append(
                f"time          {format_duration(self.speed.seconds)} a step, "
                f"{format_duration(epoch * self.speed.seconds)} "
                f"for {of}\n              ({self.speed.how})"
            )
        lines.append(
            f"disk          {system_memory.format_bytes(self.checkpoints)} for checkpoints and model"
            + (
                f", {system_memory.format_bytes(self.cache - self.held)} for decoded images"
                if self.cache > self.held
                else ""
            )
        )
        lines.append(f"memory        {system_memory.format_bytes(self.peak)} at the fullest moment")
        lines += [f"  {system_memory.format_bytes(count):>9s}  {name}" for name, count in self._parts()]
        lines += ["", f"Most of a step's memory: {sentence(price, load)}.", *self._limits(), "", *self._others()]
        if network.capabilities.any_patch:
            lines += [
                "",
                lookup_table_size(network.capabilities.patch_px, network.channels, network.width, network.axes),
            ]
        return "\n".join(lines)

    def _parts(self) -> list[tuple[str, int]]:
        parts = [*self.price.memory.items(), ("the bare process", self.bare), ("all decoded images", self.held)]
        entries = sorted(((n, c) for n, c in parts if c >= 0.005 * self.peak), key=lambda item: -item[1])
        rest = self.peak - sum(count for _, count in entries)
        return [*entries, *([("all the rest", rest)] if rest > 0 else [])]

    def _limits(self) -> list[str]:
        if self.memory is None:
            return []
        fits = "fits into" if self.peak <= self.memory else "DOES NOT FIT into"
        batch = f"the largest batch that fits is {self.batch}" if self.batch else "not even the smallest batch fits"
        patch = f", the smallest patch {self.patch}" if self.patch else ""
        return [f"It {fits} {system_memory.format_bytes(self.memory)}; {batch}{patch}."]

    def _others(self) -> list[str]:
        if not self.others:
            return []
        lines = ["alternatives, by operations:"]
        for option in self.others:
            ratio = option.price.total_flops / max(1, self.price.total_flops)
            peak = self.bare + self.held + option.price.peak
            mark = "" if self.memory is None or peak <= self.memory else "  does not fit"
            lines.append(
                f"  {ratio:6.3g} x operations  {system_memory.format_bytes(peak):>9s}  "
                f"{option.name}: {option.how}{mark}"
            )
        return lines
