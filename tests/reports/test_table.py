"""The report for a person: order, words, and harmless whatever a model is called."""

import re
from dataclasses import replace

import pytest

from fp_audit.reports._base import Report
from fp_audit.reports.table import Table, printable
from fp_audit.types import Access, Cost, Finding, Skipped, Verdict

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "two\nlines",
    "carriage\rreturn",
    "tab\tstop",
    "[red]markup[/red]",
    "[/]",
    "[link=http://evil]x[/link]",
    "\x9b31m",
    "\u202eright to left",
    "back\x08space",
    "nul\x00",
    ":smile:",
    "x" * 5000,
    "",
    "猫" * 50,
]


def finding(target="thief", verdict=Verdict.DERIVED, p=0.004, reason="is alike", victim="digits"):
    return Finding(target, victim, verdict, reason, "onnx", None, p, p, (), Cost())


def rendered(*findings, skipped=(), victims=("digits",), **more):
    return Table().render(Report(victims, findings, skipped, 0.01, Access.QUERIES), **more)


def squeezed(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("width", [40, 120])
def test_hostile_names_are_harmless(name, width):
    text = rendered(finding(name), finding("b", reason=name), skipped=(Skipped(name, name),), width=width)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text) < 12_000
    lines = text.split("\n\n")[0].splitlines()
    assert len([line for line in lines if line.startswith(("derived", "skipped"))]) == 3


@pytest.mark.parametrize("name", [h for h in HOSTILE if 0 < len(h) < 40], ids=ascii)
def test_hostile_names_are_shown(name):
    assert squeezed(printable(name)) in squeezed(rendered(finding(name), width=200))
    assert printable(name).isprintable()


def test_printable_escapes_and_shortens():
    assert printable("a\x1b[0m\n") == "a\\x1b[0m\\x0a"
    assert printable("é[red]") == "é[red]"
    assert len(printable("\n" * 999)) == 300
    assert printable("x" * 300) == "x" * 300
    assert printable("x" * 301).endswith("xxx...")


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "\u202eevil"])
def test_hostile_victims_are_harmless(name):
    text = rendered(finding(victim=name), finding(victim="b"), victims=(name, "b"))
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) == 6 or "\n" not in name


def test_the_most_serious_come_first_and_skipped_last():
    findings = [finding(f"t-{verdict}", verdict) for verdict in reversed(Verdict)]
    text = rendered(*findings, skipped=(Skipped("broken", "truncated"),))
    places = [text.index(f"t-{verdict}") for verdict in Verdict]
    assert places == sorted(places)
    assert text.index("broken") > places[-1]
    for verdict in Verdict:
        assert re.search(rf"^{verdict} ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("p", "wanted"), [(None, "-"), (0.0, "<1e-16"), (1e-17, "<1e-16"), (0.00412, "0.0041"), (1, "1"), (2e-9, "2e-09")]
)
def test_p_values_are_short(p, wanted):
    assert re.search(rf"^derived +thief +{re.escape(wanted)} +is alike", rendered(finding(p=p)), re.MULTILINE)


def test_the_victim_is_a_column_only_where_there_are_several():
    assert "VICTIM" not in rendered(finding())
    text = rendered(finding(), finding(victim="faces"), victims=("digits", "faces"))
    assert "VICTIM" in text
    assert "1 target against digits, faces: 2 derived." in squeezed_line(text)


def squeezed_line(text):
    return re.sub(r"\s+", " ", text)


def test_the_summary_counts():
    text = rendered(finding("a"), finding("b", Verdict.INDEPENDENT), skipped=(Skipped("c", "why"),))
    assert "3 targets against digits: 1 derived, 1 independent, 1 skipped." in squeezed_line(text)
    assert "0 targets against digits: nothing found." in squeezed_line(rendered())
    assert "at most 0.01 expected" in squeezed_line(text)
    assert "Depth: queries." in squeezed_line(text)


def test_colours_only_where_they_are_understood():
    plain = rendered(finding())
    assert "\x1b" not in plain
    coloured = rendered(finding(), colour=True)
    assert "\x1b[" in coloured
    assert squeezed(re.sub(r"\x1b\[[0-9;]*m", "", coloured)) == squeezed(plain)
    assert plain.endswith("\n")


def test_the_table_fits_the_terminal():
    one = replace(finding("a-rather-long-name/of-a-model"), reason="word " * 60)
    for width in (60, 100):
        assert max(map(len, rendered(one, width=width).splitlines())) <= width
