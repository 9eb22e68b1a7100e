"""Cheaper settings for the same run, each with its price; the largest batch and the smallest patch that fit.

What is offered depends on the cards of the method and the backbone, not on their names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saccade.cost.step import BatchPrices, Price, Workload, price
from saccade.errors import SaccadeError
from saccade.methods.registry import card_of
from saccade.models.registry import configured, for_axes
from saccade.models.settings import BackboneSettings

MOST_IMAGES = 65536
MOST_TOKENS = 2**21
"""Of a view: more are not worth a look."""


@dataclass(frozen=True)
class Alternative:
    """A change, how to ask for it, and what the step costs then."""

    name: str
    how: str
    load: Workload
    price: Price


def _changed(network: Any, **changes: object) -> BackboneSettings:
    """The same network with other settings, of those that its family has."""
    changed: BackboneSettings = dataclasses.replace(network, **changes)
    return changed


def _renamed(load: Workload, base: str) -> Workload:
    """The same run with another network of about the same size and patch, attention fused."""
    old = load.network
    new = configured(base, channels=old.channels, size_px=old.size_px, axes=old.axes)
    shared = {n: getattr(old, n) for n in ("positions", "registers") if n in new.options and n in old.options}
    return load.with_(network=_changed(new, **shared), explicit=None)


def _fitting(load: Workload, patch: int) -> Workload:
    """The same run with another patch; local crops grow to whole patches. ModelError where a global view has none."""
    network = _changed(load.network, patch=patch)
    count, side = load.local_views
    return load.with_(network=network, local_views=(count, math.ceil(side / network.unit_px) * network.unit_px))


def _size_of(network: BackboneSettings) -> str:
    """micro, tiny, small, ... of a transformer's name."""
    words = network.name.split("_")
    return words[1] if len(words) > 1 else ""


def _candidates(load: Workload) -> list[tuple[str, str, Callable[[], Workload]]]:
    network, ability = load.network, load.network.capabilities
    patch = ability.patch_px
    changes: list[tuple[str, str, Callable[[], Workload]]] = []
    if load.explicit:
        changes.append(("fused attention", "the default", lambda: load.with_(explicit=None)))
    if not card_of(load.method).needs_masking:
        if "attention" in network.options and not ability.reads_grids:
            radius = 7 if network.axes == 2 else 4
            for name, pattern in (("window attention", f"window:{radius}"), ("axial attention", "axial")):
                changes.append((name, f"--set model.attention={pattern}", _with_attention(load, pattern)))
        if ability.has_attention and ability.any_patch and not ability.batch_norm:
            size = _size_of(network)
            for name, base in (
                ("pooled tokens (HVT)", f"hvt_{size}_patch{patch}"),
                ("hybrid: a CNN first", f"hybrid_{size}_patch{patch}"),
            ):
                changes.append((name, f"--backbone {base}", _with_base(load, base)))
    if patch and not ability.reads_grids:
        coarser = 2 * patch
        name = network.name.replace(f"patch{patch}", f"patch{coarser}")
        changes.append((f"patches of {coarser}", f"--backbone {name}", lambda: _fitting(load, coarser)))
    if ability.checkpointing and not load.recompute:
        how = "--set train.checkpointing=true"
        changes.append(("recomputed activations", how, lambda: load.with_(recompute=True)))
    if load.batch % 2 == 0 and load.batch > 2:
        half = load.batch // 2
        how = f"--batch {half} --set train.accumulate={2 * load.accumulate}"
        changes.append(("two half batches a step", how, lambda: load.with_(batch=half, accumulate=2 * load.accumulate)))
    return changes


def _with_attention(load: Workload, pattern: str) -> Callable[[], Workload]:
    return lambda: load.with_(network=_changed(load.network, attention=pattern), explicit=None)


def _with_base(load: Workload, base: str) -> Callable[[], Workload]:
    return lambda: _renamed(load, base)


def alternatives(load: Workload) -> list[Alternative]:
    """Every change that is possible here, ordered by operations, then by memory."""
    result = []
    for name, how, change in _candidates(load):
        try:
            changed = change()
            if changed == load:
                continue
            if changed.global_views[1] % changed.network.unit_px or (
                changed.local_views[0] and changed.local_views[1] % changed.network.unit_px
            ):
                continue
            for_axes(changed.network, load.network.axes)
            result.append(Alternative(name, how, changed, price(changed)))
        except SaccadeError:  # no such network, or not at this size
            continue
    return sorted(result, key=lambda a: (a.price.total_flops, a.price.peak))


def largest_batch(load: Workload, limit: int) -> int:
    """The most images of a micro-batch whose step stays within ``limit`` bytes; 0: not even the smallest fits.

    The peak is nearly linear in the batch, so the line through two known peaks says where to look next.
    """
    prices = functools.cache(BatchPrices(load))
    smallest = low = card_of(load.method).min_batch
    if prices(low).peak > limit:
        return 0
    high = max(2 * load.batch, low + 1)
    while prices(high).peak <= limit:
        if high >= MOST_IMAGES:
            return high
        low, high = high, min(MOST_IMAGES, max(2 * high, 2 + _meets(prices, limit, low, high)))
    while high - low > 1:
        guess = _meets(prices, limit, low, high)
        # The guess and the next one enclose the limit of a straight line; the middle is for all others.
        for batch in (guess, guess + 1, (low + high) // 2):
            if low < batch < high:
                low, high = (batch, high) if prices(batch).peak <= limit else (low, batch)
    while low > smallest and price(load.with_(batch=low)).peak > limit:  # fragmentation is not linear
        low = max(smallest, low - max(1, low // 32))
    return low


def _meets(prices: Callable[[int], Price], limit: int, low: int, high: int) -> int:
    """The batch at which the line through the peaks of two batches reaches the limit."""
    slope = (prices(high).peak - prices(low).peak) / (high - low)
    return low + int((limit - prices(low).peak) / max(slope, 1.0))


def smallest_patch(load: Workload, limit: int) -> int | None:
    """The finest patch with which a step fits; None where the network has no patches or none fits."""
    ability, side = load.network.capabilities, load.global_views[1]
    if not ability.patch_px or ability.reads_grids:
        return None
    patches = [p for p in range(1, side + 1) if side % p == 0 and (ability.any_patch or p & (p - 1) == 0)]
    loads = [(patch, _fitting(load, patch)) for patch in patches if (side // patch) ** load.network.axes <= MOST_TOKENS]
    loads = [(patch, changed) for patch, changed in loads if side % changed.network.unit_px == 0]
    low, high = 0, len(loads)
    while low < high:  # finer patches need more memory
        middle = (low + high) // 2
        low, high = (low, middle) if price(loads[middle][1]).peak <= limit else (middle + 1, high)
    return loads[low][0] if low < len(loads) else None


def accumulated(load: Workload, limit: int) -> Workload | None:
    """The same step in micro-batches that fit; None where not even the smallest does."""
    prices = BatchPrices(load.with_(accumulate=2))
    for parts in (2**power for power in range(1, 20)):
        if load.batch % parts or load.batch // parts < card_of(load.method).min_batch:
            return None
        if prices(load.batch // parts).peak <= limit:
            return load.with_(batch=load.batch // parts, accumulate=load.accumulate * parts)
    return None
