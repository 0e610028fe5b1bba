"""Importing this module makes a process ready to open transformers models quickly: it is a name to preload.

It imports every supported family and has transformers build its table of renamed weights, which it otherwise
does at the first model (0.1 s).
"""

import importlib

from fp_audit_adapters import _torch  # noqa: F401  first: it makes transformers importable
from fp_audit_adapters._hf_families import MODULES

for _module in MODULES:
    importlib.import_module(_module)
vars(importlib.import_module("transformers.conversion_mapping"))["get_checkpoint_conversion_mapping"]("vit")
