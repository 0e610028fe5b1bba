"""Plugins: by folder and by entry point, listed without being imported."""

import json
import subprocess
import sys
import textwrap

import pytest

from fp_audit import plugins
from fp_audit.errors import PluginError


def run(code, *paths):
    """Run code in a fresh interpreter; the last line that it prints is JSON."""
    script = f"import sys, json; sys.path[:0] = {[str(p) for p in paths]!r}\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def distribution(folder, name, points, code=""):
    """Lay down an installed distribution: a module and its metadata."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(points))
    return folder


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_every_built_in_plugin_can_be_loaded_and_is_called_like_its_file(kind):
    loaded = plugins.load_all(kind)
    assert tuple(loaded) == plugins.names(kind) == tuple(sorted(plugins.names(kind)))
    for name, found in loaded.items():
        assert found.name == name
        assert found.__module__.rpartition(".")[2] == name.replace("-", "_")


def test_names_are_listed_without_importing_anything():
    code = """
        from fp_audit import plugins
        found = {kind: plugins.names(kind) for kind in ("fingerprints", "attacks", "sources", "reports")}
        heavy = {"torch", "timm", "transformers", "datasets", "scipy", "onnx", "onnxruntime"} & set(sys.modules)
        folders = ("fp_audit.fingerprints.", "fp_audit.attacks.", "fp_audit.reports.")
        ours = [m for m in sys.modules if m.startswith(folders)]
        print(json.dumps([found, sorted(heavy), ours]))
    """
    found, heavy, ours = run(code)
    assert {"weights", "identity", "negatives-logits"} <= set(found["fingerprints"])
    assert set(found["reports"]) >= {"json", "table"}
    assert heavy == []
    assert ours == []


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(PluginError, match=r"no method called 'wieghts': expected one of .*weights"):
        plugins.load("fingerprints", "wieghts")
    with pytest.raises(PluginError, match="no report format called 'pdf'"):
        plugins.load("reports", "pdf")


@pytest.mark.parametrize("name", ["_base", "-base", "--init--", "../evil", "json.x"])
def test_private_modules_are_no_plugins(name):
    with pytest.raises(PluginError):
        plugins.load("reports", name)


def test_a_distribution_adds_a_plugin(tmp_path):
    code = """
        class Shout:
            name = "shout"
    """
    distribution(tmp_path, "shouting", "[fp_audit.reports]\nshout = shouting:Shout\n", code)
    got = run(
        """
        from fp_audit import plugins
        listed, imported = plugins.names("reports"), "shouting" in sys.modules
        print(json.dumps([listed, imported, plugins.load("reports", "shout").__name__]))
        """,
        tmp_path,
    )
    assert set(got[0]) >= {"json", "shout", "table"}
    assert got[0] == sorted(got[0])
    assert got[1:] == [False, "Shout"]


FAILS = """
    from fp_audit import plugins
    from fp_audit.errors import PluginError
    try:
        plugins.load("reports", {name!r})
        print(json.dumps(None))
    except PluginError as error:
        print(json.dumps(str(error)))
"""


def test_two_of_one_name_are_refused(tmp_path):
    distribution(tmp_path, "rival", "[fp_audit.reports]\njson = rival:Json\n")
    message = run(FAILS.format(name="table"), tmp_path)
    assert message == "two report formats are called 'json': uninstall one of the packages that bring it"


def test_two_distributions_of_one_name_are_refused(tmp_path):
    for name in ("one", "two"):
        distribution(tmp_path, name, f"[fp_audit.reports]\nshout = {name}:Shout\n")
    assert "two report formats are called 'shout'" in run(FAILS.format(name="shout"), tmp_path)


@pytest.mark.parametrize("point", ["no_such_module:Shout", "broken:Missing"])
def test_a_broken_distribution_is_a_plugin_error(tmp_path, point):
    distribution(tmp_path, "broken", f"[fp_audit.reports]\nshout = {point}\n")
    assert "shout" in run(FAILS.format(name="shout"), tmp_path)
