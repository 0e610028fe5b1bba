"""``fp-audit stress``."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fp_audit import audit

ATTACKS = "prune:rate=0.3+quantise:mode=static:calibration=32,prune:rate=0.99"


class Page(HTMLParser):
    """Collects what a page loads from elsewhere, and the text of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere, self.cells, self._in_cell = [], [], False

    def handle_starttag(self, tag, attrs):
        self._in_cell = tag in ("td", "th")
        self.elsewhere += [value for name, value in attrs if name in ("src", "href") and value.startswith("http")]

    def handle_data(self, data):
        if self._in_cell:
            self.cells.append(data.strip())


def stress(invoke, registered, out, *more, attacks=ATTACKS):
    return invoke("stress", "owner", "--data", registered.data, "--attacks", attacks, "--out", out, *more)


def test_a_table_a_page_and_json(home, registered, invoke, tmp_path):
    out = tmp_path / "out"
    result = stress(invoke, registered, out)
    assert result.exit_code == 0, result.stderr
    assert "1 of 1 surrogates that stay useful are detected at level 0.01." in result.stdout
    assert "Broken rather than stolen, not counted: prune:rate=0.99" in result.stdout
    assert "derived" in result.stdout

    found = json.loads((out / "stress.json").read_text())
    chain, broken = found["trials"]
    assert found["schema_version"] == 1
    assert chain["finding"]["verdict"] == "derived"
    assert chain["useful"] is True
    assert broken["useful"] is False
    assert chain["provenance"]["attack"] == "prune+quantise"
    assert {item["method"] for item in chain["finding"]["evidence"]} - {audit.JOINT} == set(found["methods"])
    assert chain["answers_only"]["p_value"] >= chain["finding"]["p_value"]
    assert 0 <= found["evasion"]["ipguard"] <= 1

    page = Page()
    page.feed((out / "stress.html").read_text())
    assert page.elsewhere == []
    assert f"1. {ATTACKS.partition(',')[0]}" in page.cells
    assert set(found["methods"]) <= set(page.cells)
    assert "<svg" in (out / "stress.html").read_text()

    stamp = (out / "surrogates" / "prune_rate=0.99" / "model.safetensors").stat().st_mtime_ns
    again = stress(invoke, registered, out)
    assert again.stdout == result.stdout
    assert (out / "surrogates" / "prune_rate=0.99" / "model.safetensors").stat().st_mtime_ns == stamp


def test_what_an_attack_cannot_do_is_a_row_and_not_the_end(home, registered, invoke, tmp_path):
    attacks = "extract:architecture=no-such,prune:rate=0.1"
    result = stress(invoke, registered, tmp_path / "out", attacks=attacks)
    assert result.exit_code == 0, result.stderr
    assert "extract:architecture=no-such: architecture is 'no-such'" in result.stdout
    assert "Not tried to the end: extract:architecture=no-such." in result.stdout


def test_nothing_possible_is_3(home, registered, invoke, tmp_path):
    assert stress(invoke, registered, tmp_path / "out", attacks="extract:architecture=no-such").exit_code == 3


@pytest.mark.parametrize(
    ("attacks", "says"),
    [
        ("prune:rate=2", "rate is 2.0"),
        ("prun", "no attack called 'prun'"),
        ("prune:rat=1", "'rat=1' is no option"),
        ("prune+", "no attack called ''"),
        (",", "--attacks names none"),
    ],
)
def test_wrong_attacks(home, registered, invoke, tmp_path, attacks, says):
    result = stress(invoke, registered, tmp_path / "out", attacks=attacks)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_surrogates_of_another_seed(home, registered, invoke, tmp_path):
    assert stress(invoke, registered, tmp_path / "out", attacks="prune:rate=0.1").exit_code == 0
    result = stress(invoke, registered, tmp_path / "out", "--seed", "1", attacks="prune:rate=0.1")
    assert result.exit_code == 2
    assert "was made from another model, seed or data set" in result.stderr


def test_the_model_must_be_the_registered_one(home, registered, invoke, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(registered.models / "thief" / "fine-tuned", changed)
    result = stress(invoke, registered, tmp_path / "out", "--model", changed)
    assert result.exit_code == 2
    assert "is not the model that was registered as 'owner'" in result.stderr
    gone = stress(invoke, registered, tmp_path / "out", "--model", tmp_path / "gone")
    assert gone.exit_code == 2
    assert "Name its model with --model" in gone.stderr


def test_unknown_victims_and_data(home, registered, invoke, tmp_path):
    assert "no victim called 'nobody'" in invoke("stress", "nobody", "--data", registered.data).stderr
    result = invoke("stress", "owner", "--data", tmp_path / "no.npz", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no.npz" in result.stderr
    noise = tmp_path / "noise.npz"
    rng = np.random.default_rng(0)
    np.savez(noise, images=rng.integers(0, 256, (300, 3, 32, 32), np.uint8), labels=rng.integers(0, 10, 300))
    assert "does not fit" in invoke("stress", "owner", "--data", noise, "--out", tmp_path / "out").stderr
    assert not Path("stress-owner").exists()


def test_interrupted_is_130_and_goes_on(home, registered, invoke, tmp_path, monkeypatch):
    from fp_audit import stressing

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stressing, "_scanned", interrupted)
        result = stress(invoke, registered, tmp_path / "out", attacks="prune:rate=0.1")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert stress(invoke, registered, tmp_path / "out", attacks="prune:rate=0.1").exit_code == 0
