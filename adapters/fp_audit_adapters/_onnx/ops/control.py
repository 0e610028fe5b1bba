"""Control flow. A subgraph arrives as a callable that takes its inputs and then the captured outer values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fp_audit_adapters._onnx.ops.registry import operator

Body = Callable[..., tuple[Any, ...]]


@operator("If", host=(0,))
def if_(condition: bool | list[bool], *captured: Any, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:  # noqa: ANN401
    """One branch or the other; the branch that is not taken is not run."""
    holds = all(condition) if isinstance(condition, list) else condition
    return then_branch(*captured) if holds else else_branch(*captured)


@operator("Loop", host=(0,))
def loop(
    trips: int | list[int] | None,
    condition: Tensor | None,
    *values: Any,  # noqa: ANN401
    body: Body,
    inputs: int,
) -> tuple[Any, ...]:
    """``body(i, condition, state)`` until the count is reached or the condition fails.

    Args:
        trips: most rounds; None for no limit.
        condition: whether to begin.
        values: the state, then the captured values.
        body: returns the condition, the new state, and a slice of each stacked output.
        inputs: how many inputs the node lists; the first two are the limits, the others are the state.
    """
    limit = trips[0] if isinstance(trips, list) else trips
    carried = inputs - 2
    state, captured = values[:carried], values[carried:]
    go = condition is None or bool(condition)
    slices: list[tuple[Any, ...]] = []
    round_ = 0
    while go and (limit is None or round_ < limit):
        again, *results = body(torch.tensor(round_), torch.tensor(True), *state, *captured)
        state, go = tuple(results[:carried]), bool(again)
        slices.append(tuple(results[carried:]))
        round_ += 1
    return (*state, *(torch.stack(parts) for parts in zip(*slices, strict=True)))


@operator("Scan", since=9)
def scan(
    *values: Any,  # noqa: ANN401
    body: Body,
    inputs: int,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
) -> tuple[Any, ...]:
    """``body(state, slices)`` over all slices of the scanned inputs along their axes.

    Args:
        values: the state, the ``num_scan_inputs`` scanned tensors, then the captured values.
        body: returns the new state and a slice of each stacked output.
        inputs: how many inputs the node lists: all state and scanned ones.
        num_scan_inputs: how many of those are scanned.
        scan_input_axes: axis of each scanned tensor, 0 by default.
        scan_input_directions: 1 for a tensor that is scanned backwards.
        scan_output_axes: axis along which each output is stacked, 0 by default.
        scan_output_directions: 1 for an output that is stacked backwards.
    """
    count = inputs - num_scan_inputs
    state, scanned, captured = values[:count], values[count:inputs], values[inputs:]
    axes = scan_input_axes or [0] * num_scan_inputs
    columns = [list(x.unbind(axis)) for x, axis in zip(scanned, axes, strict=True)]
    for column, backwards in zip(columns, scan_input_directions or [0] * num_scan_inputs, strict=True):
        if backwards:
            column.reverse()
    slices: list[tuple[Any, ...]] = []
    for row in zip(*columns, strict=True):
        results = body(*state, *row, *captured)
        state = tuple(results[:count])
        slices.append(tuple(results[count:]))
    stacks = [list(parts) for parts in zip(*slices, strict=True)]
    for stack, backwards in zip(stacks, scan_output_directions or [0] * len(stacks), strict=True):
        if backwards:
            stack.reverse()
    places = scan_output_axes or [0] * len(stacks)
    return (*state, *(torch.stack(stack, axis) for stack, axis in zip(stacks, places, strict=True)))


@operator("SequenceMap")
def sequence_map(sequence: list[Tensor], *values: Any, body: Body, inputs: int) -> tuple[list[Any], ...]:  # noqa: ANN401
    """``body`` of each element; of ``values`` the first ones may be sequences too, the captured ones are last."""
    extra, captured = values[: inputs - 1], values[inputs - 1 :]
    rows = []
    for index, x in enumerate(sequence):
        others = [value[index] if isinstance(value, list) else value for value in extra]
        rows.append(body(x, *others, *captured))
    return tuple(list(column) for column in zip(*rows, strict=True))
