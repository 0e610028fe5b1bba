"""Any safetensors: what is claimed under which name, read, compared and refused."""

import json

import numpy as np
import pytest
from builders import hf_folder
from safetensors.numpy import save_file

from fp_audit import Finding, Plan, ScanOptions, Skipped, compare, register, scan
from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.model import LoadOptions
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate, locate_one
from fp_audit.types import Access

TEXT = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}


def tensors(seed, noise=0.0, size=40):
    rng = np.random.default_rng(seed)
    found = {f"h.{i}.{part}.weight": rng.normal(size=(size, size)) for i in range(2) for part in "ab"}
    return {name: value + noise * rng.normal(size=value.shape) for name, value in found.items()}


def write(path, content, config=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(content, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return path.parent


def found(target):
    """What a target holds: name -> file names, and what is skipped."""
    items = list(locate([str(target)], SourceOptions()))
    skipped = {item.target: item.reason for item in items if isinstance(item, Skipped)}
    models = [item.artifact for item in items if not isinstance(item, Skipped)]
    assert all(model.adapter == "safetensors" for model in models)
    return {model.target: [file.path for file in model.files] for model in models}, skipped


def test_a_language_model_is_read_and_says_why_it_is_not_run(tmp_path):
    folder = write(tmp_path / "m" / "model.safetensors", tensors(0), TEXT)
    assert found(folder) == ({str(folder): ["model.safetensors"]}, {})
    artifact = locate_one(str(folder), SourceOptions()).artifact
    assert "GPT2LMHeadModel is not among the 36 supported" in artifact.unrun
    assert set(adapter("safetensors").tensors(artifact)) == set(tensors(0))
    for load in (adapter("safetensors").load, adapter("safetensors").load_white):
        with pytest.raises(UnsupportedModel, match="can only be compared by its weights: GPT2LMHeadModel"):
            load(artifact, LoadOptions())


def test_files_without_a_configuration(tmp_path):
    write(tmp_path / "bare" / "model.safetensors", tensors(0))
    write(tmp_path / "lora" / "adapter_model.safetensors", tensors(0))
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    write(tmp_path / "several" / "a.safetensors", tensors(1))
    write(tmp_path / "several" / "b.safetensors", tensors(2))
    for number in (1, 2):
        write(tmp_path / "shards" / f"w-0000{number}-of-00002.safetensors", {f"t{number}": np.ones(3)})
    models, skipped = found(tmp_path)
    assert models == {
        "bare": ["bare/model.safetensors"],
        "lora": ["lora/adapter_model.safetensors"],
        "several/a.safetensors": ["several/a.safetensors"],
        "several/b.safetensors": ["several/b.safetensors"],
        "shards": [f"shards/w-0000{number}-of-00002.safetensors" for number in (1, 2)],
    }
    assert not skipped


def test_a_lone_file_stands_for_its_folder(tmp_path):
    write(tmp_path / "x.safetensors", tensors(0))
    assert found(tmp_path / "x.safetensors") == ({str(tmp_path): ["x.safetensors"]}, {})


def test_what_others_open_is_theirs(tmp_path):
    hf_folder(tmp_path / "m")
    assert locate_one(str(tmp_path / "m"), SourceOptions()).artifact.adapter == "huggingface"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**TEXT, "auto_map": {"AutoModel": "x.Y"}}, "remote code"),
        ({**TEXT, "a": [{"trust_remote_code": 1}]}, "remote"),
    ],
)
def test_folders_that_name_code_are_skipped(tmp_path, config, reason):
    folder = write(tmp_path / "m" / "model.safetensors", tensors(0), config)
    models, skipped = found(folder)
    assert not models
    assert reason in skipped[str(folder)]


def test_a_broken_configuration_is_skipped(tmp_path):
    folder = write(tmp_path / "m" / "model.safetensors", tensors(0))
    (folder / "config.json").write_text("{")
    models, skipped = found(folder)
    assert not models
    assert "not JSON" in skipped[str(folder)]


def test_missing_shards_are_skipped(tmp_path):
    folder = write(tmp_path / "m" / "a-00001-of-00002.safetensors", tensors(0), TEXT)
    index = {"weight_map": {"a": "a-00001-of-00002.safetensors", "b": "a-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    models, skipped = found(folder)
    assert not models
    assert skipped


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A base, a victim made from it, and relatives of both, registered as ``text``."""
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
    base = tensors(0)

    def near(of, seed, far):
        return {name: of[name] + far * value for name, value in tensors(seed).items()}

    victim = near(base, 1, 0.1)
    every = {
        "base": base,
        "victim": victim,
        "child": near(victim, 2, 0.02),
        "sibling": near(base, 3, 0.1),
        "other": tensors(4),
    }
    for name, content in every.items():
        write(tmp_path / name / "model.safetensors", content, TEXT)
    register(Plan(str(tmp_path / "victim"), "text"))
    return tmp_path


def test_a_scan_at_any_depth(folders):
    targets = [str(folders / name) for name in ("victim", "child", "other")]
    results = list(scan(targets, "text"))
    assert all(isinstance(item, Finding) for item in results)
    assert [str(item.verdict) for item in results] == ["identical", "derived", "independent"]
    assert "only its weights were read: GPT2LMHeadModel" in results[2].reason
    assert "was not judged" in results[2].reason


def test_siblings_with_and_without_their_base(folders):
    targets = [str(folders / name) for name in ("child", "sibling", "other", "base")]
    alone = [str(item.verdict) for item in scan(targets, "text")]
    assert alone == ["derived", "derived", "independent", "derived"]
    options = ScanOptions(base=str(folders / "base"))
    based = {item.target: item for item in scan(targets, "text", options)}
    assert [str(based[target].verdict) for target in targets] == [
        "derived",
        "common-ancestor",
        "independent",
        "common-ancestor",
    ]
    (found_,) = compare(str(folders / "victim"), str(folders / "sibling"), options=options)
    assert found_.verdict == "common-ancestor"
    assert "0 of 4 changed matrices" in found_.reason


@pytest.mark.parametrize(("base", "match"), [("none", "no such file"), (".", "name one of them")])
def test_a_base_that_is_none_is_a_usage_error(folders, base, match):
    with pytest.raises(UsageError, match=match):
        list(scan(str(folders / "other"), "text", ScanOptions(depth=Access.WEIGHTS, base=str(folders / base))))
