"""The worked example of CONTRIBUTING.md is a complete method."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
from contract.test_methods import Tiny, data, network

from fp_audit.subject import Subject

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def test_the_example_method_works(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n# fp_audit/fingerprints/noise.py\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "noise.py").write_text(code)
    spec = importlib.util.spec_from_file_location("noise_example", tmp_path / "noise.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "noise_example", module)
    spec.loader.exec_module(module)
    victim = Tiny(network(0))
    method = module.Noise(queries=40)
    fingerprint = method.generate(Subject.of_model(victim), data(victim), seed=1)
    assert fingerprint.arrays["queries"].shape == (40, 1, 4, 4)
    assert method.compare(fingerprint, Subject.of_model(victim)).value == 1.0
    other = method.compare(fingerprint, Subject.of_model(Tiny(network(9)))).value
    assert other < 1.0
    assert f"{other:.0%}" in module.Noise.explain(other, {}, None)
    assert np.array_equal(
        fingerprint.arrays["queries"],
        method.generate(Subject.of_model(victim), data(victim), seed=1).arrays["queries"],
    )
