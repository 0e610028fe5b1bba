"""Hostile and broken folders: each is skipped with a reason, nothing in them is run, nothing beside them is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import onnx
import pytest
from onnx import external_data_helper

from fp_audit import Skipped, scan

MARK = "import pathlib; pathlib.Path({!r}).write_text('ran')\n"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (MARK.format(self.marker),)


def pickle_only(folder, models, marker):
    shutil.copy(models.victim / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))


def lone_pickle(folder, models, marker):
    (folder / "model.pt").write_bytes(pickle.dumps(Bomb(marker)))


def remote_code(folder, models, marker):
    shutil.copytree(models.victim, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["TrapForImageClassification"],
        "model_type": "trap",
        "auto_map": {"AutoModelForImageClassification": "modeling.TrapForImageClassification"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    code = MARK.format(str(marker)) + "class TrapForImageClassification: pass\n"
    for name in ("modeling.py", "modeling_trap.py", "__init__.py", "configuration_trap.py"):
        (folder / name).write_text(code)


def outside_data(folder, models, marker):
    model = onnx.load(models.stranger)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 64:
            external_data_helper.set_external_data(tensor, "../secret", length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def absolute_data(folder, models, marker):
    model = onnx.load(models.stranger)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    external_data_helper.set_external_data(tensor, str(folder.parent / "secret"), length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def linked_data(folder, models, marker):
    outside_data(folder, models, marker)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content.replace(b"../secret", b"se.secret"))
    (folder / "se.secret").symlink_to(folder.parent / "secret")


def text(folder, models, marker):
    (folder / "model.onnx").write_text("This is not a model.\n" * 20)


def nothing_in_it(folder, models, marker):
    (folder / "model.onnx").write_bytes(b"")


def truncated(folder, models, marker):
    content = models.int8.read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])


def truncated_safetensors(folder, models, marker):
    shutil.copytree(models.victim, folder, dirs_exist_ok=True)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def lying_header(folder, models, marker):
    shutil.copytree(models.victim, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def deep_json(folder, models, marker):
    shutil.copytree(models.victim, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text("[" * 100_000)


def link_loop(folder, models, marker):
    (folder / "model.onnx").symlink_to(folder / "other.onnx")
    (folder / "other.onnx").symlink_to(folder / "model.onnx")


def link_outside(folder, models, marker):
    (folder / "model.onnx").symlink_to(models.stranger)


def empty(folder, models, marker):
    pass


def no_weights(folder, models, marker):
    shutil.copy(models.victim / "config.json", folder)


TRAPS = (
    pickle_only,
    lone_pickle,
    remote_code,
    outside_data,
    absolute_data,
    linked_data,
    text,
    nothing_in_it,
    truncated,
    truncated_safetensors,
    lying_header,
    deep_json,
    link_loop,
    link_outside,
    empty,
    no_weights,
)


@pytest.fixture(scope="module")
def scanned(registered, tmp_path_factory):
    """Each trap scanned by itself, all in one scan: trap -> results; and the marker that must not exist."""
    root = tmp_path_factory.mktemp("hostile")
    marker = root / "marker"
    (root / "secret").write_bytes(os.urandom(200_000))
    for trap in TRAPS:
        (root / trap.__name__).mkdir()
        trap(root / trap.__name__, registered, marker)
    results = list(scan([str(root / trap.__name__) for trap in TRAPS], "owner"))
    return {trap: [item for item in results if _is_of(item.target, root / trap.__name__)] for trap in TRAPS}, marker


def _is_of(target, folder):
    return target == str(folder) or target.startswith(f"{folder}/")


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_it_is_skipped_with_a_reason(scanned, trap):
    results = scanned[0][trap]
    assert results, "it is not in the report"
    for item in results:
        assert isinstance(item, Skipped), item
        assert 10 < len(item.reason) < 400
        assert "\n" not in item.reason
        assert "Traceback" not in item.reason
        assert "Error:" not in item.reason, item.reason


def test_nothing_was_run(scanned):
    assert not scanned[1].exists()


def test_the_trap_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("trap", "says"),
    [(pickle_only, "pickle"), (lone_pickle, "pickle"), (outside_data, "secret"), (absolute_data, "secret")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_reason_names_the_danger(scanned, trap, says):
    assert any(says in item.reason for item in scanned[0][trap]), scanned[0][trap]


def test_folders_that_link_in_a_circle_end(registered, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "back").symlink_to(tmp_path / "a")
    (skipped,) = scan(str(tmp_path / "a"), "owner")
    assert isinstance(skipped, Skipped)


def test_names_cannot_speak_to_the_terminal(registered, tmp_path):
    from fp_audit import plugins
    from fp_audit.reports._base import Report
    from fp_audit.types import Access

    folder = tmp_path / "\x1b[2J\nall clear [bold]"
    folder.mkdir()
    (folder / "model.onnx").write_text("text")
    results = tuple(scan(str(tmp_path), "owner"))
    assert all(isinstance(item, Skipped) for item in results)
    report = Report(("owner",), (), results, 0.01, Access.QUERIES)
    table = plugins.load("reports", "table")().render(report, width=400)
    assert "\x1b" not in table
    assert not any(line.startswith("all clear") for line in table.splitlines())
