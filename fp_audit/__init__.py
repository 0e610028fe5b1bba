"""fp-audit tells whether a model is derived from a model that you own.

The way through the house::

    target --source--> Artifact --adapter--> Model --method.compare(fingerprint)--> Score --calibrate--> Finding

Start reading here:

- ``scanning``       what a caller asks for: ``scan``, ``compare``
- ``audit``          the driver: one model down the access ladder, all outcomes to verdicts
- ``excerpt``        what headers and a few rows, read where they lie, tell about a model's weights
- ``registration``   ``register``: fingerprints, independents, nulls
- ``attacking``      ``attack``: surrogates to try the fingerprints on
- ``stressing``      ``stress``: all attacks against all fingerprints of a victim
- ``scoring``        ``evaluate``: a ``zoo`` of surrogates and independents, and how often verdicts about it are right
- ``bundle``         the evidence of a scan in one archive; ``verifying`` judges it again; ``querying`` asks by files
- ``exporting``     a registered victim in one archive, for pipelines
- ``sketches``      two kilobytes of a model; ``index`` keeps them, ``indexing`` builds and searches it
- ``watching``      what is new in accounts of a hub, scanned as it comes; ``webhook`` hears of it
- ``fingerprints/``  one method a file; ``attacks/`` one attack a file; ``sources/``, ``reports/``, ``cli/`` likewise
- ``model``          the one interface of all models; ``adapters/fp_audit_adapters`` makes them
- ``calibrate``      scores to p-values to verdicts
- ``sandbox``        where suspects are opened

Names below are imported when they are first used: ``import fp_audit`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fp_audit.ability import abilities as abilities
    from fp_audit.attacking import attack as attack
    from fp_audit.loading import load as load
    from fp_audit.registration import Plan as Plan
    from fp_audit.registration import register as register
    from fp_audit.scanning import ScanOptions as ScanOptions
    from fp_audit.scanning import compare as compare
    from fp_audit.scanning import scan as scan
    from fp_audit.scoring import EvaluationOptions as EvaluationOptions
    from fp_audit.scoring import evaluate as evaluate
    from fp_audit.stressing import StressOptions as StressOptions
    from fp_audit.stressing import stress as stress
    from fp_audit.types import Finding as Finding
    from fp_audit.types import Skipped as Skipped
    from fp_audit.types import Verdict as Verdict

__version__ = "0.1.0"

_HOMES = {
    "EvaluationOptions": "scoring",
    "Finding": "types",
    "Plan": "registration",
    "ScanOptions": "scanning",
    "Skipped": "types",
    "StressOptions": "stressing",
    "Verdict": "types",
    "abilities": "ability",
    "attack": "attacking",
    "compare": "scanning",
    "evaluate": "scoring",
    "load": "loading",
    "register": "registration",
    "scan": "scanning",
    "stress": "stressing",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 (kept equal to the imports above by tests/test_public.py)


def __getattr__(name: str) -> Any:  # noqa: ANN401 (PEP 562)
    if name not in _HOMES:
        raise AttributeError(f"module 'fp_audit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fp_audit.{_HOMES[name]}"), name)
