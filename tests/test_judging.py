"""Nulls as they would be with fewer references."""

from fp_audit import judging
from fp_audit.types import Null
from fp_audit.victims import Victim

SAC = Null((0.1, 0.2, 0.3), ("a", "b", "c"), accuracies=(0.9, 0.8, None), parts=({}, {"x": 1.0}, {}))
IPGUARD = Null((0.5, 0.6), ("b", "c"), accuracies=(0.8, None), parts=({}, {}))


def test_every_method_keeps_the_same_references():
    nulls = {"sac": SAC, "ipguard": IPGUARD}
    victim = Victim("v", "m", None, "onnx", None, None, {}, nulls, {"labels": {"sac": SAC}}, {})
    cut = judging.fewer(victim, ["c", "a"])
    kept = Null((0.1, 0.3), ("a", "c"), accuracies=(0.9, None), parts=({}, {}))
    assert cut.nulls == {"sac": kept, "ipguard": Null((0.6,), ("c",), accuracies=(None,), parts=({},))}
    assert cut.hidden == {"labels": {"sac": kept}}
