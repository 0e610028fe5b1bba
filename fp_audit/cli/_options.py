"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fp_audit.preprocess import Preprocess


def _preprocess(ctx: click.Context, param: click.Parameter, value: str | None) -> Preprocess | None:
    del ctx, param
    if value is None:
        return None
    from fp_audit.preprocess import parse

    return parse(value)


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read names that stand between commas; a callback."""
    del ctx, param
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


device = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where models run.")
cpu_device = click.option(
    "--device", default="cpu", show_default=True, metavar="cpu|cuda|auto", help="Where suspects run."
)
seed = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Everything random follows from it."
)
preprocess = click.option(
    "--preprocess",
    callback=_preprocess,
    metavar="NAME",
    help="How ONNX files want their images: 0..1, imagenet, cifar, -1..1, 0..255, caffe, mnist, optionally +bgr. "
    "[default: found out on the data]",
)
offline = click.option("--offline", is_flag=True, help="Make no request; use what is on this machine.")
references = click.option(
    "--references",
    multiple=True,
    metavar="TARGET",
    help="A model, or folder of models, that is known to be independent of the victim. Repeatable.",
)
siblings = click.option(
    "--siblings",
    multiple=True,
    metavar="TARGET",
    help="A model, or folder of models, that was trained just as the victim was, from another seed: see the method "
    "siblings. Repeatable.",
)
base = click.option(
    "--base",
    metavar="MODEL",
    help="The public model that victim and suspects were made from: sharing its weights alone is then called "
    "common-ancestor.",
)
DATA_HELP = "Labelled images: a parquet file or folder, an image folder, an .npz or a hub data set, optionally :split."
