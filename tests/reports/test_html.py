"""The page: complete, harmless whatever a model is called, and in need of nothing from outside."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit.reports._text import printable
from fp_audit.reports.html import Html, plot
from fp_audit.types import Access, Evidence, Verdict

VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Tags with their attributes, the text of each row of findings, the content of scripts; nesting is checked."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.rows, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr" and "data-text" in dict(attrs):
            self.rows.append([])

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.rows and data.strip():
            self.rows[-1].append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(given):
    return Page(Html().render(given))


def test_every_finding_is_a_row_with_its_evidence_the_most_serious_first():
    given = everything()
    page = parsed(given)
    assert [row[0] for row in page.rows] == [*(item.verdict for item in given.ordered()), "skipped"]
    for row, item in zip(page.rows, given.ordered(), strict=False):
        assert item.target in row
        assert "says the same on 93%" in row
        assert "shares none of the victim's 10 weight matrices" in row
        assert ("ignored" in row) == (item.ignored is not None)


def test_counts_are_buttons():
    words = {button["data-word"] for button in parsed(everything()).all("button") if "data-word" in button}
    assert words == {*Verdict, "skipped", "ignored"}


def test_rows_carry_numbers_to_sort_by():
    page = parsed(report(finding(p=3e-300), finding(p=None), finding(verdict=Verdict.INDEPENDENT)))
    keys = [cell["data-key"] for cell in page.all("td") if "data-key" in cell]
    assert [float(key) for key in keys] == [1, 3e-300, 1, 2, 4, 0.004]


def test_nothing_comes_from_outside_and_only_its_own_script_runs():
    text = Html().render(everything())
    page = Page(text)
    assert not re.search(r"https?:|src=|@import|url\(", text)
    (script,) = page.scripts
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_text(name):
    page, harmless = parsed(hostile(name)), parsed(hostile("name"))
    for (tag, attributes), (wanted, known) in zip(page.tags, harmless.tags, strict=True):
        assert (tag, sorted(attributes)) == (wanted, sorted(known))
    assert page.scripts == harmless.scripts
    if name.strip():
        assert printable(name).strip() in page.rows[0]


def test_it_is_readable_in_light_and_dark():
    text = Html().render(report())
    assert "color-scheme: light dark" in text
    assert "prefers-color-scheme: dark" in text


def null(score, mean, most):
    return Evidence("any", Access.QUERIES, score, 0.5, {"n": 9, "mean": mean, "max": most}, 0)


def test_a_plot_lays_score_and_null_on_one_axis():
    assert plot(null(0.9, 0.25, 0.5)) == {"score": 90, "mean": 25, "span": 25, "low": 0, "high": 1}
    assert plot(null(3.0, 1.0, 4.0)) == {"score": 75, "mean": 25, "span": 75, "low": 0, "high": 4}
    assert plot(null(-1.0, 0.0, 0.5)) == {"score": 0, "mean": 50, "span": 25, "low": -1, "high": 1}
    assert plot(Evidence("any", Access.QUERIES, 0.5, None, None, 0)) is None


def test_scores_with_a_null_are_drawn():
    page = parsed(report(finding()))
    assert len(page.all("svg")) == 1
    assert [float(rect["x"]) for rect in page.all("rect") if "x" in rect] == [40, 40, 92]


def test_thousands_of_findings_stay_small():
    text = Html().render(report(*(finding(f"org/model-{place}") for place in range(2000))))
    assert len(text) < 6_000_000
