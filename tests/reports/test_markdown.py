"""The report for a pull request, judged by what a CommonMark parser with tables makes of it."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit.reports._text import printable
from fp_audit.reports.markdown import Markdown
from fp_audit.types import Verdict


class Page(HTMLParser):
    """Rows of cells, and all tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows = set(), []
        self.feed(MarkdownIt("commonmark").enable("table").render(text))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


PLAIN = {"h3", "table", "thead", "tbody", "tr", "th", "td", "strong", "p", "details", "summary"}


def test_the_most_serious_come_first_and_independents_are_folded_away():
    text = Markdown().render(everything())
    verdicts = [row[0] for row in Page(text).rows if row[0] != "Verdict"]
    assert verdicts[:2] == ["identical", "derived"]
    assert verdicts[-2:] == ["skipped", "independent"]
    assert "derived (ignored)" in verdicts
    assert text.index("t-independent") > text.index("<details>")
    assert text.startswith("### fp-audit: 1 identical, 3 derived, 2 suspected")


def test_nothing_found():
    assert Markdown().render(report()).startswith("### fp-audit: nothing found\n")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_text_in_their_cell(name):
    page = Page(Markdown().render(hostile(name)))
    rows = [row for row in page.rows if row[0] != "Verdict"]
    assert [len(row) for row in rows] == [5, 5, 5]
    shown = [row[1].replace("\u200b", "").strip() for row in rows]
    assert shown == [" ".join(printable(name).strip().split("\n"))] * 3
    assert page.tags <= PLAIN


@pytest.mark.parametrize("name", ["@octocat", "www.evil.example", "https://evil.example", "org/repo#1"])
def test_github_finds_nobody_to_call_and_nothing_to_link(name):
    assert name not in Markdown().render(report(finding(name, Verdict.DERIVED)))
