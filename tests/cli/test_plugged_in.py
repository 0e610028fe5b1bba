"""Where fp-audit plugs in: pre-commit hook, GitHub Action and extension of ``hf``, each as it is shipped."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from builders import hf_folder

from fp_audit import Plan, exporting, register

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A register with one victim, its archive, and a repository with a copy and a stranger."""
    root = tmp_path_factory.mktemp("plugged")
    hf_folder(root / "mine", seed=1)
    shutil.copytree(root / "mine", root / "repository" / "models" / "copy")
    hf_folder(root / "repository" / "models" / "stranger", seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FP_AUDIT_HOME", str(root / "home"))
        register(Plan(str(root / "mine"), "mine", methods=("identity", "weights")))
        exporting.write("mine", root / "mine.zip")
    return root


def run(command, folder, **environment):
    """Run a command as a person would who has installed the package; nothing is asked, to be quick."""
    usual = {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "FP_AUDIT_DEPTH": "weights"}
    variables = os.environ | usual | environment
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def hook():
    (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    return found


def test_the_hook_is_one(hook):
    clientlib = pytest.importorskip("pre_commit.clientlib")
    (found,) = clientlib.load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    assert found["id"] == hook["id"] == "fp-audit"


def test_the_hook_finds_model_files_and_refuses_a_copy(hook, shipped):
    repository = shipped / "repository"
    files = sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())
    chosen = [name for name in files if re.search(hook["files"], name)]
    assert chosen == ["models/copy/model.safetensors", "models/stranger/model.safetensors"]
    done = run([*shlex.split(hook["entry"]), *chosen], repository, FP_AUDIT_HOME=str(shipped / "home"))
    assert done.returncode == 1
    assert re.search(r"^identical +models/copy ", done.stdout, re.MULTILINE)
    done = run([*shlex.split(hook["entry"]), chosen[1]], repository, FP_AUDIT_HOME=str(shipped / "home"))
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def action():
    return yaml.safe_load((ROOT / "action.yml").read_text())


def test_the_action_is_one(action):
    assert action["runs"]["using"] == "composite"
    assert {"name", "description", "inputs", "runs"} <= action.keys()
    assert action["inputs"].keys() == {"target", "victims", "args"}
    for step in action["runs"]["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert "uses" in step or step["shell"] == "bash"
        assert "${{" not in step.get("run", "")  # what somebody else wrote reaches a script as a variable only
    used = re.findall(r"\${{ inputs\.(\w+) }}", (ROOT / "action.yml").read_text())
    assert sorted(used) == sorted(action["inputs"])


def steps(action, shipped, tmp_path, **inputs):
    """Run the steps that import victims and scan, as GitHub does, until one fails."""
    given = {name: about.get("default", "") for name, about in action["inputs"].items()} | inputs
    code, said = 0, ""
    for step in action["runs"]["steps"][2:]:
        variables = {
            name: re.sub(r"\${{ inputs\.(\w+) }}", lambda match: given[match[1]], text).replace(
                "${{ runner.temp }}", str(tmp_path)
            )
            for name, text in step["env"].items()
        }
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
        done = run(command, shipped / "repository", **variables, GITHUB_ACTIONS="true")
        code, said = done.returncode, said + done.stdout + done.stderr
        if code:
            break
    return code, said


def test_the_action_finds_a_copy_and_annotates(action, shipped, tmp_path):
    archive = str(shipped / "mine.zip")
    code, said = steps(action, shipped, tmp_path, victims=f"{archive}\n", target="models/copy\nmodels/stranger\n")
    assert code == 1
    assert "::error title=fp-audit%3A identical::models/copy against mine" in said
    code, said = steps(action, shipped, tmp_path, victims=archive, args="--fail-on never --depth identity")
    assert code == 0
    assert "identical" in said


def test_the_action_fails_without_its_victims(action, shipped, tmp_path):
    code, said = steps(action, shipped, tmp_path, victims="nothing.zip", target="models/stranger; touch evil")
    assert code == 2
    assert "nothing.zip" in said
    assert not (shipped / "repository" / "evil").exists()


def test_hf_runs_it_as_an_extension(shipped, tmp_path):
    """``hf extensions install`` writes this manifest after it has installed ``OWNER/hf-fp-audit`` from GitHub."""
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-fp-audit"
    folder.mkdir(parents=True)
    manifest = {
        "owner": "owner",
        "repo": "hf-fp-audit",
        "repo_id": "owner/hf-fp-audit",
        "short_name": "fp-audit",
        "executable_path": str(SCRIPTS / "hf-fp-audit"),
        "type": "python",
        "installed_at": "2026-11-01T00:00:00+00:00",
        "description": "Tell whether a model is derived from yours.",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    home = {"HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "FP_AUDIT_HOME": str(shipped / "home")}
    done = run([SCRIPTS / "hf", "--help"], tmp_path, **home)
    assert "fp-audit" in done.stdout
    done = run([SCRIPTS / "hf", "fp-audit", "victims", "list"], tmp_path, **home)
    assert (done.returncode, done.stdout.split()[0]) == (0, "mine")
    command = [SCRIPTS / "hf", "fp-audit", "scan", "--offline", str(shipped / "repository" / "models" / "copy")]
    done = run(command, tmp_path, **home)
    assert done.returncode == 1
    assert "identical" in done.stdout
