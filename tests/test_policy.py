"""Policy files, ignore entries, baselines."""

import json
from dataclasses import replace
from datetime import date, timedelta
from hashlib import sha256
from textwrap import dedent

import pytest
from sample_reports import finding

from fp_audit.errors import UsageError
from fp_audit.policy import IN_BASELINE, Baseline, Ignore, Policy, contents, parse, read, read_baseline, write_baseline
from fp_audit.types import Artifact, File, Verdict

TODAY = date(2026, 6, 1)


def written(folder, name, text):
    (folder / name).write_text(dedent(text))
    return read(folder)


OWN = """
    depth = "weights"
    [[ignore]]
    target = "org/model"
    victim = "mine"
    until = 2027-01-31
    reason = "licensed"
"""

PROJECT = """
    [project]
    name = "x"
    [tool.fp-audit]
    fail-on = "suspected"
    [[tool.fp-audit.ignore]]
    target = "a"
    reason = "b"
"""


class TestFiles:
    def test_none(self, tmp_path):
        assert read(tmp_path).options == {}
        assert read(tmp_path).ignore == ()

    def test_of_its_own(self, tmp_path):
        policy = written(tmp_path, "fp-audit.toml", OWN)
        assert policy.options == {"depth": "weights"}
        assert policy.ignore == (Ignore("org/model", "licensed", "mine", date(2027, 1, 31)),)
        assert policy.where == "fp-audit.toml"

    def test_in_pyproject(self, tmp_path):
        policy = written(tmp_path, "pyproject.toml", PROJECT)
        assert policy.options == {"fail-on": "suspected"}
        assert policy.ignore == (Ignore("a", "b"),)

    def test_its_own_file_wins_whole(self, tmp_path):
        (tmp_path / "pyproject.toml").write_text(dedent(PROJECT))
        assert written(tmp_path, "fp-audit.toml", OWN).options == {"depth": "weights"}

    @pytest.mark.parametrize("text", ["", "[tool.ruff]\nline-length = 1\n", "tool = 3\n"])
    def test_a_pyproject_without_a_word_of_ours(self, tmp_path, text):
        assert written(tmp_path, "pyproject.toml", text).options == {}

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("depth = ", "not valid TOML"),
            ("ignore = 3", "expected [[...ignore]] entries"),
            ("ignore = [3]", "ignore entry 1: found 3"),
            ("[[ignore]]\nreason = 'b'", "target is missing"),
            ("[[ignore]]\ntarget = 'a'", "reason is missing"),
            ("[[ignore]]\ntarget = 'a'\nreason = ' '", "reason is missing"),
            ("[[ignore]]\ntarget = 'a'\nreason = 'b'\nwhy = 'c'", "unknown key 'why'"),
            ("[[ignore]]\ntarget = 'a'\nreason = 3", "reason = 3: expected text"),
            ("[[ignore]]\ntarget = 'a'\nreason = 'b'\nuntil = '2027-01-31'", "without quotes"),
            ("[[ignore]]\ntarget = 'a'\nreason = 'b'\nuntil = 2027-01-31T00:00:00", "expected a date"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, tmp_path, text, says):
        with pytest.raises(UsageError) as caught:
            written(tmp_path, "fp-audit.toml", text)
        assert says in str(caught.value)
        assert str(caught.value).startswith("fp-audit.toml: ")
        assert "\n" not in str(caught.value)

    def test_what_is_no_text(self, tmp_path):
        (tmp_path / "fp-audit.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match="not valid TOML"):
            read(tmp_path)

    def test_a_table_that_is_none(self):
        with pytest.raises(UsageError, match="expected a table"):
            parse(3, "pyproject.toml: tool.fp-audit")


def ignored(entry, *findings, today=TODAY):
    return [item.ignored for item in Policy(ignore=(entry,)).applied(findings, today)]


class TestIgnore:
    def test_only_what_it_names(self):
        entry = Ignore("a", "licensed", "mine")
        found = [finding("a", victim="mine"), finding("a", victim="other"), finding("A", victim="mine")]
        assert ignored(entry, *found) == ["licensed", None, None]
        assert ignored(Ignore("a", "licensed"), *found) == ["licensed", "licensed", None]

    def test_the_rest_of_a_finding_stays(self):
        (marked,) = Policy(ignore=(Ignore("a", "licensed"),)).applied([finding("a")], TODAY)
        assert replace(marked, ignored=None) == finding("a")

    @pytest.mark.parametrize(("days", "counts"), [(-1, True), (0, False), (1, False)])
    def test_until_is_its_last_day(self, days, counts):
        entry = Ignore("a", "licensed", until=TODAY + timedelta(days))
        policy, found = Policy(ignore=(entry,)), [finding("a"), finding("b")]
        marked = policy.applied(found, TODAY)
        assert [item.ignored for item in marked] == [None if counts else f"licensed, until {entry.until}", None]
        assert policy.expired(marked, TODAY) == ([entry] if counts else [])

    def test_an_expired_entry_that_names_nothing_found_is_not_mentioned(self):
        policy = Policy(ignore=(Ignore("a", "licensed", until=date(2020, 1, 1)),))
        assert policy.expired([finding("b")], TODAY) == []

    def test_an_entry_that_is_valid_takes_over_from_an_expired_one(self):
        old, new = Ignore("a", "old", until=date(2020, 1, 1)), Ignore("a", "new")
        policy = Policy(ignore=(old, new))
        marked = policy.applied([finding("a")], TODAY)
        assert marked[0].ignored == "new"
        assert policy.expired(marked, TODAY) == []


DIGESTS = {("a", None): "1" * 64, ("b", "sha"): "2" * 64, ("c", None): None}


class TestBaseline:
    def test_what_is_known_is_let_pass_and_what_differs_is_not(self):
        before = Baseline.of([finding("a")], DIGESTS)
        after = [
            finding("a", p=0.5),
            finding("a", Verdict.IDENTICAL),
            finding("a", victim="other"),
            finding("b", revision="sha"),
            finding("c"),
        ]
        assert [item.ignored for item in before.applied(after, DIGESTS)] == [IN_BASELINE, *[None] * 4]
        assert before.applied([finding("a")], {("a", None): "3" * 64})[0].ignored is None

    def test_a_reason_of_the_policy_stays(self):
        known = finding("a", ignored="licensed")
        assert Baseline.of([known], DIGESTS).applied([known], DIGESTS)[0].ignored == "licensed"

    def test_innocent_ones_and_those_of_unknown_content_are_not_remembered(self):
        found = [finding("a", Verdict.INDEPENDENT), finding("a", Verdict.INCONCLUSIVE), finding("c"), finding("d")]
        assert Baseline.of(found, DIGESTS).entries == frozenset()
        assert Baseline.of([finding("c")], DIGESTS).applied([finding("c")], DIGESTS)[0].ignored is None

    def test_it_is_written_and_read(self, tmp_path):
        path, before = tmp_path / "baseline.json", Baseline.of([finding("a"), finding("b", revision="sha")], DIGESTS)
        write_baseline(path, before)
        assert read_baseline(path) == before
        assert [path] == list(tmp_path.iterdir())
        content = json.loads(path.read_text())
        assert content["schema_version"] == 1
        assert content["findings"][0] == {"target": "a", "victim": "digits", "verdict": "derived", "digest": "1" * 64}

    @pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema_version": 1, "findings": [{"target": "a"}]}'])
    def test_what_is_no_baseline(self, tmp_path, text):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UsageError, match=r"b\.json is no baseline of fp-audit .*--update-baseline"):
            read_baseline(tmp_path / "b.json")

    def test_a_later_one(self, tmp_path):
        (tmp_path / "b.json").write_text('{"schema_version": 2, "findings": []}')
        with pytest.raises(UsageError, match="schema_version 2, expected 1"):
            read_baseline(tmp_path / "b.json")

    def test_one_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageError, match="does not exist: write it with --update-baseline"):
            read_baseline(tmp_path / "b.json")


def content(files, root=None):
    return contents([Artifact("a", "onnx", tuple(files), ".", root)])["a", None]


class TestContents:
    def test_listed_digests_are_taken_and_files_hashed_where_there_are_none(self, tmp_path):
        (tmp_path / "m.onnx").write_bytes(b"model")
        here = content([File("m.onnx", 5)], tmp_path)
        assert here == content([File("m.onnx", 5, sha256=sha256(b"model").hexdigest())])
        assert here == sha256(json.dumps([sha256(b"model").hexdigest()]).encode()).hexdigest()

    def test_it_follows_the_files_and_not_their_order(self):
        one, other = File("a", 1, sha256="1"), File("b", 1, git_oid="2")
        assert content([one, other]) == content([other, one])
        assert content([one]) != content([one, other])

    def test_what_is_not_here_is_unknown(self):
        assert content([File("a", 1, sha256="1"), File("b", 1)]) is None
