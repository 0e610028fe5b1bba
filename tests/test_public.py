"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fp_audit

ROOT = Path(__file__).parent.parent


def reexported():
    """Names imported in the ``if TYPE_CHECKING`` block."""
    tree = ast.parse(Path(fp_audit.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {alias.asname for node in block.body for alias in node.names}


def test_public_names_are_those_that_type_checkers_see():
    assert set(fp_audit.__all__) == reexported()
    assert list(fp_audit.__all__) == sorted(fp_audit.__all__)


@pytest.mark.parametrize("name", fp_audit.__all__)
def test_each_resolves_and_is_documented(name):
    found = getattr(fp_audit, name)
    assert found.__name__ == name
    assert found.__doc__


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fp_audit.nonsense


def imported(code):
    script = f"import sys; {code}; print(*sorted(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


@pytest.mark.parametrize("code", ["import fp_audit", "import fp_audit.cli", "import fp_audit.errors"])
def test_importing_is_light(code):
    heavy = {"numpy", "torch", "transformers", "timm", "onnx", "onnxruntime", "huggingface_hub", "datasets", "scipy"}
    assert not heavy & imported(code)


def test_scanning_an_onnx_file_needs_no_torch_in_the_parent():
    assert not {"torch", "transformers", "timm"} & imported("from fp_audit import scan, ScanOptions, Finding")


def test_python_in_the_readme_compiles():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```(?:python|py)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fp_audit":
                assert node.attr in fp_audit.__all__
