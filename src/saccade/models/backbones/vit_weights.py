"""Weights of a ViT between our layout and timm's, which DINO's and DINOv2's official files share.

The layouts differ in the positions: a class token and its position are one vector here (their sum), two in timm.
"""

from __future__ import annotations

import math

import torch

from saccade.errors import ModelError
from saccade.models.backbones.weight_formats import State
from saccade.models.card import no_counterpart
from saccade.models.nn.network import Network
from saccade.models.nn.positions import resize_table
from saccade.models.nn.vit import ViT


def to_timm(network: Network, state: State) -> State:
    """One table of positions in the place of ours. With registers the layout is that of ``no_embed_class=True``."""
    assert isinstance(network, ViT)
    s = network.settings
    if s.stem != "linear" or s.norm != "pre" or s.positions == "rotary":
        raise no_counterpart(s.name, f"stem={s.stem}, norm={s.norm}, positions={s.positions}")
    grid = network.positions.grid
    table = network.positions.added(grid, network.cls_token.expand(-1, math.prod(grid), -1))
    if table is None:
        table = torch.zeros(1, math.prod(grid), s.dim)
    table = table.detach().cpu()
    state = {key: value for key, value in state.items() if not key.startswith("positions.")}
    if not s.registers:
        table = torch.cat([torch.zeros(1, 1, s.dim).to(table), table], dim=1)
    state["pos_embed"] = table
    return state


def from_timm(network: Network, state: State, axes: int) -> State:
    """timm's names to ours: the position of prefix tokens is added to them, that of patches is resized.

    ``axes`` is that of what the weights were made for; a table for images is repeated for every slice of a volume.
    """
    assert isinstance(network, ViT)
    state = {key.replace("register_tokens", "reg_token"): value for key, value in state.items()}
    if network.settings.positions == "factorised":
        return state | _tables_of_axes(network, state, axes)
    if network.settings.positions != "learned":
        return state  # check_keys then reports a table in the file as superfluous
    ours = "positions.table" in state
    table = state.pop("positions.table" if ours else "pos_embed", None)
    if table is None or table.ndim != 3 or table.shape[2] != network.dim:
        raise ModelError(
            f"the position embedding does not fit {network.name}",
            got="no pos_embed" if table is None else f"pos_embed: {tuple(table.shape)}",
            expected=f"pos_embed: (1, N, {network.dim})",
            hint="name the network that the weights belong to: FILE@NAME",
        )
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    if ours:
        prefix, side = 0, round(table.shape[1] ** (1 / axes))
    else:
        prefix, side = _split_positions(table.shape[1], registers)
    if prefix:
        state["cls_token"] = state["cls_token"] + table[:, :1]
    if prefix > 1:
        state["reg_token"] = state["reg_token"] + table[:, 1:prefix]
    grid = network.positions.grid
    resized = resize_table(table.detach()[:, prefix:], (side,) * axes, grid[-axes:])
    state["positions.table"] = resized.repeat(1, math.prod(grid[:-axes]), 1)
    return state


def _tables_of_axes(network: ViT, state: State, axes: int) -> State:
    """One resized table for each axis; zeros for the depth of a volume where the weights are for images."""
    grid = network.positions.grid
    missing = len(grid) - axes
    tables = {}
    for axis, length in enumerate(grid):
        key = f"positions.tables.{axis - missing}"
        table = state.get(key) if axis >= missing else torch.zeros(1, length, network.dim)
        if table is not None:
            tables[f"positions.tables.{axis}"] = resize_table(table, (table.shape[1],), (length,))
    return tables


def _split_positions(count: int, registers: int) -> tuple[int, int]:
    """How many of the positions belong to prefix tokens, and the side of the square grid of the others."""
    for prefix in (0, 1, 1 + registers):
        side = math.isqrt(max(0, count - prefix))
        if side and side * side == count - prefix:
            return prefix, side
    raise ModelError(
        "the position embedding does not fit a square grid",
        got=f"{count} positions, {registers} registers",
        expected="a square number, with or without class and register tokens",
        hint="resize the table to a square grid before loading it",
    )
