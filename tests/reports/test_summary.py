"""The page of a bundle for a reader: everything is on it, in words, and nothing on it can do harm."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from fp_audit.reports._base import Report
from fp_audit.reports._summary import MEANINGS, as_html
from fp_audit.reports.json import Json
from fp_audit.types import Access, Cost, Evidence, Finding, Skipped, Verdict

NASTY = "<script>alert(1)</script>\x1b[31m\u202e{{ 7*7 }}\"'><img src=x onerror=alert(1)>"
COMMITMENT = "ab" * 32


def finding(target="thief", verdict=Verdict.DERIVED, p=0.0004, victim="digits", evidence=None):
    shown = (
        Evidence("sac", Access.QUERIES, 0.9, p, None, 100, "finds the same pairs alike"),
        Evidence("zest", Access.QUERIES, 0.5, None, None, 7, "resembles it"),
    )
    cost = Cost(1, 1234, 2.0)
    return Finding(
        target, victim, verdict, "is like it", "onnx", "abc", p, p, shown if evidence is None else evidence, cost
    )


def page(*findings, skipped=(), nasty="model.onnx", **changes):
    report = Report(("digits",), findings, skipped, 0.01, Access.QUERIES)
    files = [{"path": nasty, "size": 1234, "sha256": "cd" * 32, "git_oid": None}]
    keys = dict.fromkeys((item.target, item.revision) for item in findings)
    about = {
        "created": "2026-01-02T03:04:05+00:00",
        "tool": {"name": "fp-audit", "version": "0.1.0"},
        "command": f"fp-audit scan {nasty}",
        "versions": {"python": "3.11"},
        "suspects": [
            {
                "target": target,
                "adapter": "onnx",
                "revision": revision,
                "files": files,
                "failure": None,
                "silent": {"digits": {"weights": nasty}, "other": {}},
            }
            for target, revision in keys
        ],
    }
    victim = {
        "source": nasty,
        "revision": None,
        "commitment": COMMITMENT,
        "facts": {
            "registered": "2025-06-01T00:00:00+00:00",
            "files": files,
            "data": {"name": nasty, "images": 500, "digest": "ef"},
            "references": [{"name": "a", "kind": "trained"}] * 12 + [{"name": "b", "kind": "given"}] * 2,
        },
    }
    return as_html(
        about, json.loads(Json().render(report)), {"digits": {**victim, **changes}}, {"sac": "pairs of answers"}
    )


class Text(HTMLParser):
    """Collects what is read, and the tags."""

    def __init__(self, source):
        super().__init__()
        self.read, self.tags = "", set()
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data):
        self.read += data


def test_it_says_what_was_found_and_what_that_means():
    read = " ".join(Text(page(finding())).read.split())
    for words in (
        "Compared with the registered model “digits”: derived",
        MEANINGS[Verdict.DERIVED],
        "the examined model is like it",
        "about 1 in 2,500 would be expected",
        "model.onnx, 1,234 bytes",
        "cd" * 32,
        "abc",
        "pairs of answers (100 test images)",
        "12 trained on the owner's images for this purpose, 2 chosen by the owner",
        "at most 1 % are expected to be wrong",
        "2025-06-01T00:00:00+00:00",
        COMMITMENT,
        "p is not the probability that somebody is innocent",
        "which of the two models came first",
        "Confidential until the case is decided",
        "fp-audit verify-bundle BUNDLE.zip --commitment COMMITMENT-OF-digits",
        "Place and date",
        "Signature",
    ):
        assert words in read, words


def test_what_does_not_vote_is_told_apart():
    assert page(finding()).count("for information") == 1


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_words(verdict):
    assert MEANINGS[verdict] in Text(page(finding(verdict=verdict))).read


def test_the_most_serious_come_first():
    weak, strong = finding("a", Verdict.INDEPENDENT, 0.7), finding("z", Verdict.DERIVED)
    text = page(weak, strong)
    assert text.index("Examined model &ldquo;z&rdquo;") < text.index("Examined model &ldquo;a&rdquo;")
    assert "2 comparisons" in Text(text).read


def test_names_do_no_harm():
    text = page(finding(NASTY), nasty=NASTY, skipped=(Skipped(NASTY, NASTY),))
    parsed = Text(text)
    assert not {"script", "img", "onerror", "src", "href"} & parsed.tags
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "{{ 7*7 }}" in parsed.read
    assert "49" not in parsed.read


def test_texts_without_end_are_cut():
    assert len(page(finding("x" * 100_000), nasty="y" * 100_000)) < 60_000


def test_nothing_is_fetched():
    text = page(finding())
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_nothing_was_compared():
    read = Text(page(skipped=(Skipped("gone", "no such file"),))).read
    assert "No model could be compared" in read
    assert "no such file" in read


def test_no_commitment():
    assert "registered by an older version" in Text(page(finding(), commitment=None)).read


def test_an_inconclusive_model():
    text = page(finding(verdict=Verdict.INCONCLUSIVE, p=None, evidence=()))
    assert "No method could be applied" in text
    assert "All methods together" not in text


@pytest.mark.parametrize(
    ("p", "words"), [(1.0, "all would"), (1 / 3, "1 in 3"), (1e-300, "fewer than 1 in 1,000,000,000")]
)
def test_odds(p, words):
    assert words in " ".join(Text(page(finding(p=p))).read.split())
