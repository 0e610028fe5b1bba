"""Where in a network something was found, in the words of its tensors' names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

_NUMBERED = re.compile(r"^(?P<stem>(?:[^.]*[^.\d][^.]*\.)+)(?P<number>\d{1,4})\.")
"""The first part of a name that is a number: ``encoder.layer.`` and ``3`` of ``encoder.layer.3.mlp.weight``."""

SHOWN = 3
"""Ranges that are named."""


def places(found: Mapping[str, bool]) -> str:
    """Say in which numbered blocks most matrices were found: ``blocks 3 to 11 of encoder.layer``.

    Args:
        found: name of each matrix -> whether it was found.

    Returns:
        An empty string where every block was found, or none, or where names have no numbers.
    """
    blocks: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for name, matched in found.items():
        if match := _NUMBERED.match(name):
            blocks[match["stem"].rstrip(".")][int(match["number"])].append(matched)
    texts, whole = [], True
    for stem, numbered in blocks.items():
        if len(numbered) == 1:
            continue
        copied = [number for number, matched in sorted(numbered.items()) if 2 * sum(matched) > len(matched)]
        whole = whole and len(copied) == len(numbered)
        texts += [f"{text} of {stem}" for text in ranges(copied)]
    return "" if whole else ", ".join(texts[:SHOWN]) + (", ..." if len(texts) > SHOWN else "")


def ranges(numbers: Sequence[int]) -> list[str]:
    """Put ascending numbers into words: ``block 1``, ``blocks 3 to 11``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"block {run[0]}" if len(run) == 1 else f"blocks {run[0]} to {run[-1]}" for run in runs]
