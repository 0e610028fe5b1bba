"""What GitHub Actions is told: annotations on stderr, the summary of the job, and nothing that a name invents."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit.cli import _github
from fp_audit.types import Verdict


def announced(given, capsys):
    _github.announce(given)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


@pytest.fixture(autouse=True)
def no_summary(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


def test_levels_follow_what_fails(capsys):
    lines = announced(everything(), capsys)
    assert [line.split("::")[1].split()[0] for line in lines] == [
        *("error", "error", "notice", "error"),
        *["warning"] * 6,
    ]
    assert lines[0].startswith(
        "::error title=fp-audit%3A identical::t-identical against digits: identical (p 0.004): says"
    )
    assert "(ignored: licensed until 2027)" in lines[2]


def test_the_level_of_the_scan(capsys):
    given = replace(report(finding(verdict=Verdict.SUSPECTED)), serious=(Verdict.SUSPECTED,))
    assert announced(given, capsys)[0].startswith("::error ")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_says_no_command(name, capsys):
    lines = announced(hostile(name), capsys)
    assert len(lines) == 3
    assert all(line.startswith(("::error title=fp-audit%3A ", "::warning title=", "::notice title=")) for line in lines)
    assert "%0A::add-mask" not in "".join(lines)


def test_no_more_than_github_shows(capsys):
    assert len(announced(report(*[finding(f"m{place}") for place in range(50)]), capsys)) == 10


def test_the_summary_is_appended(tmp_path, monkeypatch, capsys):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    announced(everything(), capsys)
    text = path.read_text()
    assert text.startswith("before\n\n### fp-audit: ")
    assert "t-derived" in text


def test_a_summary_that_github_would_refuse_is_cut(tmp_path, monkeypatch, capsys):
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    announced(report(*[finding(f"m{place}", reason="long " * 50) for place in range(5000)]), capsys)
    assert 2**20 - 1000 < path.stat().st_size <= 2**20
    assert "cut" in path.read_text().splitlines()[-1]


@pytest.mark.parametrize("line", ["::error::x", "   ::add-mask::y", "##[group]z"])
def test_lines_like_commands_lose_their_meaning(line):
    text = _github.harmless(f"first\n{line}\nlast ::kept::\n")
    assert f"\n{line}\n" not in text
    assert text.endswith("last ::kept::\n")


def test_a_scan_under_actions(home, registered, invoke, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    for name in ("m", "::add-mask::m"):
        (tmp_path / "models" / name).mkdir(parents=True)
        shutil.copy(registered.int8, tmp_path / "models" / name / "model.onnx")
    result = invoke("scan", tmp_path / "models", "--victim", "owner", "--depth", "weights", "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["summary"]["derived"] == 2
    commands = [line for line in result.stderr.splitlines() if line.startswith("::")]
    assert all(line.startswith("::error title=fp-audit%3A derived::") for line in commands)
    assert "::error title=fp-audit%3A derived::m against owner: derived" in result.stderr
    assert "**derived**" in (tmp_path / "summary.md").read_text()


def test_elsewhere_nothing_is_said(home, registered, invoke):
    result = invoke("scan", registered.int8, "--victim", "owner", "--depth", "weights")
    assert "::error" not in result.stderr
