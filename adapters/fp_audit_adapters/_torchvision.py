"""Makes ``import torchvision`` work beside a torch build that its compiled operators do not fit.

Package registries often hold no CPU build of torchvision. A CUDA wheel beside a CPU torch cannot load its
operators, and then ``import torchvision`` dies while it registers shape functions for operators that do not
exist ("operator torchvision::nms does not exist"), which takes timm and parts of transformers with it. Image
classifiers never call those operators, so it is enough that their schemas exist.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def ensure_torchvision() -> torch.library.Library | None:
    """Call before the first import of torchvision, timm or transformers; any number of times.

    Returns:
        ``None`` where the wheels match (or torchvision is missing), else the library that holds the stand-in
        schemas. The cache keeps it alive: when it is collected, the schemas go too.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    for binary in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(binary)  # type: ignore[no-untyped-call]
        except OSError:
            break
    missing = [name for name in _SCHEMAS if getattr(torch.ops.torchvision, name, None) is None]
    if not missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in missing:
        library.define(_SCHEMAS[name])  # type: ignore[no-untyped-call]
    return library
