"""What a graph is compiled to: a list of steps over numbered slots."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fp_audit.errors import CorruptModel

ABSENT = 0
"""The slot of inputs that are left out; it always holds None."""


class Step(NamedTuple):
    """One node: ``run`` maps the values in the slots ``inputs`` to those for ``outputs``."""

    run: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    label: str
    """Name and operator, for messages."""
    free: tuple[int, ...] = ()
    """Slots whose values nobody reads after this step."""


class Program:
    """Steps in an order in which each one finds its inputs.

    Attributes:
        steps: the steps.
        template: the initial value of every slot; a slot that a step or the caller fills holds None.
        inputs: slots that the caller fills.
        outputs: slots that the caller reads.
    """

    def __init__(
        self, steps: Iterable[Step], template: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int]
    ) -> None:
        self.template = list(template)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.steps = _with_frees(list(steps), frozenset(outputs))

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:  # noqa: ANN401 (a value is a tensor or a list of them)
        """Runs all steps on values for ``inputs``; returns those of ``outputs``."""
        values = list(self.template)
        for slot, argument in zip(self.inputs, arguments, strict=True):
            values[slot] = argument
        self.execute(values)
        return tuple(values[slot] for slot in self.outputs)

    def execute(self, values: list[Any]) -> None:
        """Runs all steps on ``values``, one entry a slot, in place.

        Raises:
            CorruptModel: a node cannot be computed on what the nodes before it (or the caller) gave it.
        """
        label = ""
        try:
            for run, inputs, outputs, label, free in self.steps:  # noqa: B007 (read by the handler)
                result = run(*[values[slot] for slot in inputs])
                if len(outputs) == 1:
                    values[outputs[0]] = result[0] if isinstance(result, tuple) else result
                else:
                    for slot, value in zip(outputs, result, strict=False):
                        values[slot] = value
                for slot in free:
                    values[slot] = None
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CorruptModel(f"node {label} cannot be computed: {reason[:300]}") from error

    def cut(self, outputs: Sequence[int]) -> "Program":
        """A program with only those steps that ``outputs`` need."""
        needed = set(outputs)
        kept = []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                needed.update(step.inputs)
                kept.append(step)
        return Program(reversed(kept), self.template, self.inputs, outputs)


def _with_frees(steps: list[Step], kept: frozenset[int]) -> list[Step]:
    """The steps, each with the slots that it is the last one to read or the only one to know."""
    made = {slot for step in steps for slot in step.outputs} - {ABSENT}
    seen = set(kept)
    result = []
    for step in reversed(steps):
        last = {slot for slot in (*step.inputs, *step.outputs) if slot in made and slot not in seen}
        seen |= last
        result.append(step._replace(free=tuple(sorted(last))))
    return result[::-1]


def with_numbers(run: Callable[..., Any], places: Iterable[int]) -> Callable[..., Any]:
    """``run`` with the tensors at ``places`` handed over as Python numbers or lists."""
    positions = tuple(places)

    def converted(*arguments: Any) -> Any:  # noqa: ANN401
        plain = list(arguments)
        for position in positions:
            if isinstance(plain[position], Tensor):
                plain[position] = plain[position].tolist()
        return run(*plain)

    return converted


def on_one_device(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` with tensors on the CPU moved to the accelerator when another argument is there."""

    def moved(*arguments: Any) -> Any:  # noqa: ANN401
        devices = {x.device for x in arguments if isinstance(x, Tensor)}
        if len(devices) < 2:
            return run(*arguments)
        device = next(device for device in devices if device.type != "cpu")
        return run(*[x.to(device) if isinstance(x, Tensor) else x for x in arguments])

    return moved
