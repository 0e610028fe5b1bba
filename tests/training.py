"""Training networks in tests."""

from __future__ import annotations


def train_here(waiting, data, cache, architecture):
    """Stand in for ``networks._train_in_processes``: train in this process, because others start slowly."""
    from fp_audit import networks

    return networks._train_together(waiting, data, "cpu", architecture)
