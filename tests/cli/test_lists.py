"""``fp-audit methods``, ``attacks``, ``adapters`` and ``doctor``."""

from __future__ import annotations

import pytest

from fp_audit import __version__, plugins
from fp_audit.cli import doctor


@pytest.mark.parametrize(
    ("command", "kind"), [("methods", "fingerprints"), ("attacks", "attacks"), ("adapters", "adapters")]
)
def test_every_plugin_is_listed(invoke, command, kind):
    result = invoke(command)
    assert result.exit_code == 0
    headings = [line for line in result.stdout.partition("\n\n")[0].splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0].rstrip("*") for line in headings] == list(plugins.names(kind))


def test_methods_say_what_they_need(invoke):
    text = invoke("methods").stdout
    for label in ("source: ", "needs: ", "budget: ", "options: ", "withstands: ", "misses: "):
        assert text.count(label) == len(plugins.names("fingerprints"))
    for name in plugins.names("fingerprints"):
        default = plugins.load("fingerprints", name).default
        assert (f"\n{name}*:" in "\n" + text) == default
    assert "QUERIES+REPRESENTATION+DISTANCE" in text
    assert "boundary (of ipguard)" in text
    assert "jsd (of probabilities)" in text


def test_attacks_say_their_options(invoke):
    assert "options: " in invoke("attacks").stdout


def test_doctor(home, invoke):
    result = invoke("doctor")
    assert result.exit_code == 0, result.stderr
    for word in ("python 3.", "onnxruntime ", "CUDA for torch", "isolation of suspects", "network", str(home)):
        assert word in result.stdout
    assert "(victims: 2)" in result.stdout


def test_doctor_knows_which_extras_are_absent():
    requirements = [
        "numpy>=2",
        "numpy>=2; extra == 'here'",
        'no-such-thing[x]>=2; python_version > "3" and extra == "there"',
        "click; extra == 'there'",
        "no-such-tool; extra == 'dev'",
    ]
    assert doctor.absent_of(requirements) == {"here": [], "there": ["no-such-thing"]}


def test_version(invoke):
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"fp-audit {__version__}\n"
