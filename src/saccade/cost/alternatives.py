"""Cheaper ways to the same end, each with its price, the cheapest first; the largest batch and smallest patch that fit.

Arithmetic, no torch. Where a method or a network has no use for a change, it is not offered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saccade.cost.step_memory import Price, Workload, price
from saccade.errors import SaccadeError
from saccade.methods.registry import card_of
from saccade.models.backbones.vit import ViTSettings
from saccade.models.registry import configured, for_axes
from saccade.models.settings import Settings

MOST_IMAGES = 65536


@dataclass(frozen=True)
class Alternative:
    """A change, how to ask for it, and what the step costs then."""

    name: str
    how: str
    load: Workload
    price: Price


def _changed(network: Any, **changes: object) -> Settings:
    """The same network with other settings, of those that its family has."""
    found: Settings = dataclasses.replace(network, **changes)
    return found


def _renamed(load: Workload, base: str) -> Workload:
    """The same run with another network of about the same size and patch, attention fused."""
    old = load.network
    new = configured(base, channels=old.channels, size_px=old.size_px, axes=old.axes)
    kept = {n: getattr(old, n) for n in ("positions", "registers") if n in new.options and n in old.options}
    return load.with_(network=_changed(new, **kept), explicit=None)


def _fitting(load: Workload, patch: int) -> Workload:
    """The same run with another patch; local crops grow to whole patches. ModelError where a global view has none."""
    network = _changed(load.network, patch=patch)
    count, side = load.local_views
    return load.with_(network=network, local_views=(count, math.ceil(side / network.unit_px) * network.unit_px))


def _size_of(network: Settings) -> str:
    """micro, tiny, small, ... of a transformer's name."""
    words = network.name.split("_")
    return words[1] if len(words) > 1 else ""


def _candidates(load: Workload) -> list[tuple[str, str, Callable[[], Workload]]]:
    s, patch = load.network, load.network.capabilities.patch_px
    found: list[tuple[str, str, Callable[[], Workload]]] = []
    if load.explicit:
        found.append(("fused attention", "what saccade does by itself", lambda: load.with_(explicit=None)))
    if isinstance(s, ViTSettings) and not s.capabilities.reads_grids:
        size = _size_of(s)
        if not card_of(load.method).needs_masking:
            reach = 7 if s.axes == 2 else 4
            for name, pattern in (("window attention", f"window:{reach}"), ("axial attention", "axial")):
                if s.attention != pattern:
                    found.append((name, f"--set model.attention={pattern}", _with_attention(load, pattern)))
            for name, base in (
                ("pooled tokens (HVT)", f"hvt_{size}_patch{patch}"),
                ("hybrid: a CNN first", f"hybrid_{size}_patch{patch}"),
            ):
                if s.stem == "linear":
                    found.append((name, f"--backbone {base}", _with_base(load, base)))
    if patch and not s.capabilities.reads_grids:
        twice = 2 * patch
        name = s.name.replace(f"patch{patch}", f"patch{twice}")
        found.append((f"patches of {twice}", f"--backbone {name}", lambda: _fitting(load, twice)))
    if s.capabilities.checkpointing and not load.recompute:
        found.append(
            ("activations computed twice", "--set train.checkpointing=true", lambda: load.with_(recompute=True))
        )
    if load.batch % 2 == 0 and load.batch > 2:
        half = load.batch // 2
        how = f"--batch {half} --set train.accumulate={2 * load.accumulate}"
        found.append(("two half batches a step", how, lambda: load.with_(batch=half, accumulate=2 * load.accumulate)))
    return found


def _with_attention(load: Workload, pattern: str) -> Callable[[], Workload]:
    return lambda: load.with_(network=_changed(load.network, attention=pattern), explicit=None)


def _with_base(load: Workload, base: str) -> Callable[[], Workload]:
    return lambda: _renamed(load, base)


def alternatives(load: Workload) -> list[Alternative]:
    """Every change that is possible here, ordered by operations, then by memory."""
    found = []
    for name, how, change in _candidates(load):
        try:
            changed = change()
            if changed.global_views[1] % changed.network.unit_px or (
                changed.local_views[0] and changed.local_views[1] % changed.network.unit_px
            ):
                continue
            for_axes(changed.network, load.network.axes)
            found.append(Alternative(name, how, changed, price(changed)))
        except SaccadeError:  # no such network, or not at this size
            continue
    return sorted(found, key=lambda a: (a.price.total_flops, a.price.peak))


def largest_batch(load: Workload, limit: int) -> int:
    """The most images of a micro-batch whose step stays within ``limit`` bytes; 0: not even the least fits."""

    def fits(batch: int) -> bool:
        return price(load.with_(batch=batch)).peak <= limit

    least = card_of(load.method).min_batch
    if not fits(least):
        return 0
    low, high = least, 2 * least
    while high <= MOST_IMAGES and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def smallest_patch(load: Workload, limit: int) -> int | None:
    """The finest patch with which a step fits; None where the network has no patches or none fits."""
    s = load.network
    if not s.capabilities.patch_px or s.capabilities.reads_grids:
        return None
    side = load.global_views[1]
    plain = s.capabilities.any_patch
    choices = [p for p in range(1, side + 1) if side % p == 0 and (plain or p & (p - 1) == 0)]
    for patch in sorted(choices):
        try:
            changed = _fitting(load, patch)
            if side % changed.network.unit_px or too_many(changed):
                continue
            if price(changed).peak <= limit:
                return patch
        except SaccadeError:
            continue
    return None


def too_many(load: Workload) -> bool:
    """More tokens than are worth playing through: a view of a million."""
    side = load.global_views[1] // max(1, load.network.capabilities.patch_px)
    return side**load.network.axes > 2**21


def accumulated(load: Workload, limit: int) -> Workload | None:
    """The same step in micro-batches that fit; None where not even the smallest does."""
    for parts in (2**power for power in range(1, 20)):
        if load.batch % parts or load.batch // parts < 1:
            return None
        changed = load.with_(batch=load.batch // parts, accumulate=load.accumulate * parts)
        if price(changed).peak <= limit:
            return changed
    return None
