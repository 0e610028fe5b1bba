"""``fp-audit scan`` with a policy file, ``FP_AUDIT_*`` variables and a baseline."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta

import pytest

from fp_audit.cli import scan as module

WEIGHTS = ("--victim", "owner", "--depth", "weights")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class TestDefaults:
    @pytest.fixture(autouse=True)
    def chosen(self, monkeypatch, here):
        """Note what a scan is asked for, and stop there."""
        chosen = {}

        def noted(targets, victim, options):
            chosen.update(vars(options), victim=victim)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "_scan", noted)
        return chosen

    def test_command_line_then_environment_then_file_then_built_in(self, home, invoke, here, monkeypatch, chosen):
        def alpha(*options):
            invoke("scan", "x", *options)
            return chosen["alpha"]

        assert alpha() == 0.01
        (here / "pyproject.toml").write_text("[tool.fp-audit]\nalpha = 0.02\n")
        assert alpha() == 0.02
        (here / "fp-audit.toml").write_text("alpha = 0.03\n")
        assert alpha() == 0.03
        monkeypatch.setenv("FP_AUDIT_ALPHA", "0.04")
        assert alpha() == 0.04
        assert alpha("--alpha", "0.05") == 0.05

    @pytest.mark.parametrize("target", [".", "..", "model.safetensors"])
    def test_a_policy_that_came_with_a_suspect_is_refused(self, home, invoke, here, chosen, target):
        (here / "fp-audit.toml").write_text('fail-on = "never"\n')
        (here / "model.safetensors").touch()
        result = invoke("scan", target)
        assert result.exit_code == 2
        assert "a suspect could let itself pass" in result.stderr
        assert not chosen

    def test_every_kind_of_option(self, home, invoke, here, chosen):
        lines = ['depth = "weights"', "jobs = 3", "offline = true", 'victim = ["owner", "asked"]', "timeout = 7"]
        lines += ["max-bytes = 1000", 'preprocess = "mnist"', 'fail-on = "never"', f'output = ["json={here}/r.json"]']
        (here / "fp-audit.toml").write_text("\n".join([*lines, 'format = "json"', "strict = true"]))
        result = invoke("scan", "x")
        assert result.exit_code == 130, result.stderr
        assert (str(chosen["depth"]), chosen["jobs"], chosen["offline"]) == ("weights", 3, True)
        assert (chosen["victim"], chosen["timeout"], chosen["max_bytes"]) == (("owner", "asked"), 7.0, 1000)

    def test_variables_of_every_kind(self, home, invoke, here, monkeypatch, chosen):
        known = {"DEPTH": "identity", "JOBS": "2", "OFFLINE": "1", "VICTIM": "owner asked", "MAX_BYTES": "5"}
        for name, value in known.items():
            monkeypatch.setenv(f"FP_AUDIT_{name}", value)
        invoke("scan", "x")
        assert (str(chosen["depth"]), chosen["jobs"], chosen["offline"]) == ("identity", 2, True)
        assert (chosen["victim"], chosen["max_bytes"]) == (("owner", "asked"), 5)

    @pytest.mark.parametrize("name", ["FORMAT", "OUTPUT"])
    def test_variables_are_called_like_the_options(self, home, invoke, here, monkeypatch, name):
        monkeypatch.setenv(f"FP_AUDIT_{name}", "nonsense")
        result = invoke("scan", "x")
        assert result.exit_code == 2
        assert "nonsense" in result.stderr

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("dept = 'weights'", "unknown key 'dept': expected ignore or one of alpha, base, baseline, depth"),
            ("resume = true", "unknown key 'resume'"),
            ("help = true", "unknown key 'help'"),
            ("depth = 3", "depth = 3: expected text"),
            ("depth = 'soul'", "depth = 'soul': 'soul' is not one of"),
            ("jobs = '4'", "jobs = '4': expected a whole number"),
            ("jobs = true", "jobs = True: expected a whole number"),
            ("jobs = 0", "jobs = 0: 0 is not in the range"),
            ("alpha = 'small'", "alpha = 'small': expected a number"),
            ("offline = 1", "offline = 1: expected true or false"),
            ("victim = 'owner'", "victim = 'owner': expected a list of texts"),
            ("victim = [1]", "victim = [1]: expected a list of texts"),
            ("depth = ['weights']", "depth = ['weights']: expected text"),
            ("depth = {a = 1}", "expected text"),
            ("alpha =", "not valid TOML"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, home, invoke, here, text, says):
        (here / "fp-audit.toml").write_text(text)
        result = invoke("scan", "x")
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("fp-audit: fp-audit.toml: ")
        assert says in line

    def test_help_needs_no_policy(self, invoke, here):
        (here / "fp-audit.toml").write_text("nonsense")
        assert invoke("scan", "--help").exit_code == 0

    def test_a_baseline_has_to_be_named_and_to_exist(self, home, invoke, here):
        for options, says in ((["--update-baseline"], "--baseline FILE"), (["--baseline", "b.json"], "does not exist")):
            result = invoke("scan", "x", *options)
            assert result.exit_code == 2
            assert says in result.stderr


def scanned(invoke, target, *options):
    result = invoke("scan", target, *WEIGHTS, "--format", "json", *options)
    return result, json.loads(result.stdout)


class TestIgnore:
    def entry(self, here, target, **more):
        lines = [f'target = "{target}"', *(f"{key} = {value}" for key, value in more.items())]
        (here / "fp-audit.toml").write_text("\n".join(["[[ignore]]", *lines]))

    def test_what_is_ignored_is_reported_and_does_not_count(self, home, registered, invoke, here):
        self.entry(here, registered.int8, reason='"licensed"')
        result, report = scanned(invoke, registered.int8)
        assert result.exit_code == 0
        assert report["findings"][0]["verdict"] == "derived"
        assert report["findings"][0]["ignored"] == "licensed"
        assert (report["summary"]["derived"], report["summary"]["ignored"]) == (1, 1)

    def test_an_expired_entry_is_mentioned_and_its_finding_counts(self, home, registered, invoke, here):
        yesterday = date.today() - timedelta(1)
        self.entry(here, registered.int8, reason='"licensed"', until=yesterday)
        result, report = scanned(invoke, registered.int8)
        assert result.exit_code == 1
        assert report["findings"][0]["ignored"] is None
        assert f"expired on {yesterday}" in result.stderr

    def test_an_entry_of_another_victim(self, home, registered, invoke, here):
        self.entry(here, registered.int8, reason='"licensed"', victim='"asked"')
        assert scanned(invoke, registered.int8)[0].exit_code == 1


class TestBaseline:
    def test_only_what_is_new_fails(self, home, registered, invoke, here):
        models = here / "models"
        for name in ("old", "changed"):
            (models / name).mkdir(parents=True)
            shutil.copy(registered.int8, models / name / "model.onnx")
        baseline = ("--baseline", "known.json")
        result, _ = scanned(invoke, models, *baseline, "--update-baseline")
        assert result.exit_code == 0
        assert len(json.loads((here / "known.json").read_text())["findings"]) == 2
        assert scanned(invoke, models, *baseline)[0].exit_code == 0

        (models / "new").mkdir()
        shutil.copy(registered.int8, models / "new" / "model.onnx")
        import onnx

        model = onnx.load(models / "changed" / "model.onnx")
        model.producer_name = "somebody"
        onnx.save(model, models / "changed" / "model.onnx")
        result, report = scanned(invoke, models, *baseline)
        assert result.exit_code == 1
        marks = {finding["target"]: finding["ignored"] for finding in report["findings"]}
        assert marks == {"old": "in the baseline", "changed": None, "new": None}

    def test_what_the_policy_ignores_is_not_written(self, home, registered, invoke, here):
        (here / "fp-audit.toml").write_text(f'[[ignore]]\ntarget = "{registered.int8}"\nreason = "licensed"\n')
        _, report = scanned(invoke, registered.int8, "--baseline", "known.json", "--update-baseline")
        assert report["findings"][0]["ignored"] == "licensed"
        assert json.loads((here / "known.json").read_text())["findings"] == []

    def test_it_holds_for_a_resumed_scan(self, home, registered, invoke, here):
        options = ("--baseline", "known.json")
        scanned(invoke, registered.int8, *options, "--update-baseline")
        result, report = scanned(invoke, registered.int8, *options, "--resume")
        assert result.exit_code == 0
        assert report["findings"][0]["ignored"] == "in the baseline"
