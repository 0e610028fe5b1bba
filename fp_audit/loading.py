"""Opening a model that you trust, for notebooks and other programs."""

from __future__ import annotations

from fp_audit import data as labelled_images
from fp_audit.alignment import make_probes, settle
from fp_audit.engine import pick_device
from fp_audit.model import LoadOptions, WhiteBox
from fp_audit.preprocess import parse
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one


def load(model: str, data: str | None = None, *, preprocess: str | None = None, device: str = "auto") -> WhiteBox:
    """Open a model in this process, without a sandbox.

    Args:
        model: hub id, model folder or ``.onnx`` file.
        data: labelled images on which the preprocessing of an ONNX file is found out.
        preprocess: or its name, see ``preprocess.NAMED``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        TargetError: the model cannot be opened.
        UsageError: it does not say how images are preprocessed, and neither do the arguments.
    """
    located = locate_one(model, SourceOptions())
    artifact = located.source.fetch(located.artifact)
    kind = adapter(artifact.adapter)
    known = parse(preprocess) if preprocess else None
    options = LoadOptions(device=pick_device(device), preprocess=known)
    if known is None and data is not None:
        opened = kind.load(artifact, options)
        found = settle(opened, make_probes(labelled_images.load(data), seed=0)).preprocess
        options = LoadOptions(device=options.device, preprocess=found)
    return kind.load_white(artifact, options)
