"""Weights judged without a download: what an excerpt may say, and what a scan of a hub then does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save, save_file

from fp_audit import Plan, ScanOptions, Skipped, register, scan
from fp_audit.cli import cli
from fp_audit.errors import NotApplicable
from fp_audit.excerpt import LEAST, MAX_BYTES, Excerpt
from fp_audit.sources._ranged import WHOLE, Allowance, RangedFile
from fp_audit.types import Access, Fingerprint

if TYPE_CHECKING:
    from hub_server import HubServer

SHAPES = [(48, 3, 3, 3), *[(96, 48, 3, 3), (96, 96, 3, 3)] * 2, (384, 96), (10, 384)]
"""Of a network of 1.7 MB; ten classes."""
WEIGHTS = ScanOptions(depth=Access.WEIGHTS)


def network(seed: int, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {f"layer{i}.weight": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}


def fingerprint(tensors, classes=10):
    arrays = {f"tensor{i}": t for i, t in enumerate(tensors.values())}
    return Fingerprint("weights", {}, arrays, {"classes": classes, "names": list(tensors)})


def opened(tensors, **more):
    content = save(tensors)
    file = RangedFile(len(content), lambda begin, end: content[begin:end], Allowance(100, 10**9))
    return Excerpt({"model.safetensors": file, **more}), file


def judged(suspect, victim=None, bound=1e-4):
    excerpt, file = opened(suspect)
    score = excerpt.compare(fingerprint(victim or network(0)), bound)
    assert file.fetched <= 100_000 + MAX_BYTES
    return score


class TestExcerpt:
    @pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
    def test_copies_are_convicted(self, noise):
        suspect = {name: value + noise * network(9)[name] for name, value in network(0).items()}
        score = judged(suspect)
        assert score is not None
        assert score.p_value < 1e-6
        assert not score.identical
        assert score.detail["read"] >= score.detail["matched"] >= LEAST
        assert score.detail["matrices"] == len(SHAPES)
        assert score.value == pytest.approx(1 / np.sqrt(1 + noise**2), abs=0.05)

    def test_half_precision_and_other_names_and_order(self):
        names = sorted(network(0), reverse=True)
        assert judged({f"z.{i}": network(0)[name].astype(np.float16) for i, name in enumerate(names)}) is not None

    def test_plain_matrices_may_be_stored_transposed(self):
        victim = network(0, [(96 + i, 40 + i) for i in range(5)])
        assert judged({name: np.ascontiguousarray(value.T) for name, value in victim.items()}, victim) is not None

    def test_independents_are_not_convicted(self):
        """At a bound of .1 at most one in ten may be; by the share that looks may use up, one in a thousand."""
        convicted = [judged(network(seed), bound=0.1) for seed in range(1, 101)]
        assert convicted == [None] * 100

    def test_permuted_rows_are_left_to_the_whole_method(self):
        rng = np.random.default_rng(5)
        assert judged({name: rng.permutation(value) for name, value in network(0).items()}) is None

    def test_no_shape_of_the_victim_s(self):
        with pytest.raises(NotApplicable, match="no weight matrix has a shape of the victim's"):
            judged(network(1, [(50, 30), (20, 50, 3, 3)]))

    def test_adapters_are_left_to_the_whole_method(self):
        """Factors of another rank may have the same products."""
        shapes = {f"layers.{i}.q.lora_{side}.weight": size for i in range(6) for side, size in (("A", 0), ("B", 1))}

        def adapter(rank):
            return {
                name: np.random.default_rng(rank).normal(size=((64, rank) if b else (rank, 64))).astype(np.float32)
                for name, b in shapes.items()
            }

        assert judged(adapter(8), adapter(4)) is None

    def test_what_may_be_a_copy_with_fewer_channels_is_not_acquitted(self):
        assert judged({name: value[: len(value) * 3 // 4, :40] for name, value in network(0).items()}) is None

    def test_what_may_hide_weights_is_not_acquitted(self):
        assert judged({**network(1, [(50, 30)]), "qweight": np.zeros((9, 9), np.int32)}) is None

    def test_one_or_two_shared_tables_convict_nobody(self):
        """Positions, masks and the like come in one order in all models."""
        for shared in (1, 2):
            suspect = network(1) | dict(list(network(0).items())[:shared])
            assert judged(suspect, bound=0.5) is None

    def test_rows_that_stand_in_one_order_everywhere_are_no_evidence(self):
        """Plain matrices whose rows are tokens and alike in all models, with hidden units in another order."""
        rng = np.random.default_rng(3)
        victim = network(0, [(60 + i, 300) for i in range(6)])
        suspect = {name: np.ascontiguousarray(value[:, rng.permutation(300)]) for name, value in victim.items()}
        assert judged(suspect, victim, bound=0.5) is None
        tied = {name: np.repeat(np.arange(len(v))[:, None], 300, 1) % 7 + 0.01 * v for name, v in victim.items()}
        assert judged(tied, {name: value[:, ::-1] for name, value in tied.items()}, bound=0.5) is None

    def test_less_than_half_of_the_victim_is_left_to_the_whole_method(self):
        assert judged(dict(list(network(0).items())[:3])) is None

    def test_rows_that_are_classes_are_no_evidence(self):
        victim = network(0, [(10, 96 + i) for i in range(6)])
        assert judged(victim, victim) is None
        excerpt, _ = opened(victim)
        assert excerpt.compare(fingerprint(victim, classes=None), 1e-2) is not None

    @pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 0.0])
    def test_hostile_numbers_are_no_match(self, value):
        assert judged({name: np.full_like(tensor, value) for name, tensor in network(0).items()}) is None

    def test_files_that_are_not_needed_are_not_opened(self):
        victim = network(0, [*SHAPES, *SHAPES])
        first = save(dict(list(victim.items())[:9]))
        unread = RangedFile(10**6, lambda *_: pytest.fail("was read"), Allowance(100, 10**9))
        file = RangedFile(len(first), lambda begin, end: first[begin:end], Allowance(100, 10**9))
        score = Excerpt({"1.safetensors": file, "2.safetensors": unread}).compare(fingerprint(victim), 1e-4)
        assert score is not None
        assert score.detail["files_not_read"] == 1


CONFIG = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}


def publish(hub: HubServer, name: str, tensors, card: str | None = None) -> Path:
    folder = hub.folder / "org" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# model\n")
    return folder


@pytest.fixture
def owner(hub: HubServer) -> HubServer:
    """A hub, and the victim ``v`` registered from it without data."""
    publish(hub, "victim", network(0))
    register(Plan("org/victim", "v", methods=("identity", "weights")))
    hub.forget()
    return hub


def only(target: str, options: ScanOptions = WEIGHTS):
    (found,) = scan(target, "v", options)
    return found


def fine_tuned():
    return {name: value + 0.1 * network(9)[name] for name, value in network(0).items()}


def test_a_derived_model_is_found_without_a_download(owner: HubServer):
    folder = publish(owner, "tuned", fine_tuned())
    finding = only("org/tuned", ScanOptions())
    assert finding.verdict == "derived"
    assert "without downloading" in finding.reason
    assert f"of {len(SHAPES)} matrices" in finding.reason
    assert finding.cost.requests == len(owner.requests) <= 5
    assert finding.cost.bytes_read == owner.bytes_sent < 700_000
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert finding.cost.bytes_read + finding.cost.bytes_avoided == size


def test_no_shape_in_common_needs_the_header_alone_and_says_what_a_full_scan_says(owner: HubServer):
    folder = publish(owner, "other", network(3, [(700, 300, 3, 3)]))
    finding = only("org/other")
    local = only(str(folder))
    assert (finding.verdict, finding.reason) == (local.verdict, local.reason)
    assert finding.verdict != "independent"
    assert finding.cost.requests == len(owner.requests) == 3
    assert owner.bytes_sent < 102_000


@pytest.mark.parametrize("seed", [0, 7])
def test_what_an_excerpt_cannot_tell_is_downloaded(owner: HubServer, seed: int):
    rng = np.random.default_rng(1)
    folder = publish(owner, "open", {name: rng.permutation(value) for name, value in network(seed).items()})
    finding = only("org/open")
    local = only(str(folder))
    assert (finding.verdict, finding.reason, finding.p_value) == (local.verdict, local.reason, local.p_value)
    assert finding.cost.bytes_avoided == 0
    assert finding.cost.requests == len(owner.requests)
    assert finding.cost.bytes_read == owner.bytes_sent


def test_onnx_too(owner: HubServer):
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(t, n) for n, t in fine_tuned().items()])
    folder = owner.folder / "org" / "exported"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    finding = only("org/exported")
    assert finding.verdict == "derived"
    assert finding.cost.bytes_avoided > WHOLE
    assert finding.cost.requests == len(owner.requests)


def test_a_limit_holds_for_parts_and_download_together(owner: HubServer):
    publish(owner, "other", network(3))
    size = (owner.folder / "org/other/model.safetensors").stat().st_size
    for limit in (50_000, size - 1):
        owner.forget()
        skipped = only("org/other", ScanOptions(depth=Access.WEIGHTS, max_bytes=limit))
        assert isinstance(skipped, Skipped)
        assert "--max-bytes" in skipped.reason
        assert owner.bytes_sent <= limit + len(json.dumps(CONFIG))
    assert only("org/other", ScanOptions(depth=Access.WEIGHTS, max_bytes=size + 1000)).verdict == "independent"
    publish(owner, "tuned", fine_tuned())
    found = only("org/tuned", ScanOptions(depth=Access.WEIGHTS, max_bytes=size - 1))
    assert found.verdict == "derived"


def test_one_victim_s_evidence_is_kept_when_the_rest_fails(owner: HubServer):
    other = network(0)
    other["layer0.weight"] = np.random.default_rng(4).permutation(other["layer0.weight"])
    publish(owner, "second", network(5))
    register(Plan("org/second", "second", methods=("identity", "weights")))
    publish(owner, "tuned", fine_tuned())
    first, second = scan("org/tuned", ["v", "second"], ScanOptions(depth=Access.WEIGHTS, max_bytes=900_000))
    assert first.verdict == "derived"
    assert second.verdict == "inconclusive"
    assert "--max-bytes" in second.reason


def test_pickles_are_compared_by_hash_alone(owner: HubServer):
    victim = owner.folder / "org" / "victim"
    for name, content in {"hidden": (victim / "model.safetensors").read_bytes(), "other": b"pickle" * 10**5}.items():
        (owner.folder / "org" / name).mkdir()
        shutil.copy(victim / "config.json", owner.folder / "org" / name)
        (owner.folder / "org" / name / "pytorch_model.bin").write_bytes(content)
    assert only("org/hidden").verdict == "identical"
    skipped = only("org/other")
    assert isinstance(skipped, Skipped)
    assert skipped.reason.startswith("only pickle weights (pytorch_model.bin)")
    assert not [request for request in owner.requests if request.endswith(".bin")]


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ("license: mit", "declares no base model"),
        ("base_model: google/vit", "declares google/vit as its base model; the victim is org/victim"),
        ("base_model: [a/b, Org/Victim]", None),
        ("base_model: {a: b}", "declares no base model"),
        ('base_model: "a\\e[31mb"', "declares a\x1b[31mb as its base model; the victim is org/victim"),
    ],
)
def test_what_a_card_declares(owner: HubServer, card: str, says: str | None, monkeypatch: pytest.MonkeyPatch):
    folder = publish(owner, "copy", network(0), card)
    found, local = only("org/copy"), only(str(folder))
    assert (found.verdict, found.declared, local.declared) == ("identical", says, says)
    assert only("org/copy", ScanOptions(offline=True)).declared == says
    shown = CliRunner().invoke(cli, ["scan", "org/copy", "--depth", "identity", "--format", "markdown"])
    assert "\x1b" not in shown.output
    assert ("it declares" in shown.output) == (says is not None)


def test_a_card_that_names_the_victim_of_an_independent_model(owner: HubServer):
    publish(owner, "proud", network(2), "base_model: org/victim")
    found = only("org/proud")
    assert found.verdict == "independent"
    assert found.declared == "declares org/victim as its base model, and shows no trace of it"


def test_a_dry_run_tells_what_a_scan_may_take(owner: HubServer):
    publish(owner, "tuned", fine_tuned())
    size = (owner.folder / "org/tuned/model.safetensors").stat().st_size
    result = CliRunner().invoke(cli, ["scan", "org/tuned", "--dry-run"], catch_exceptions=False)
    assert f"{size:,} bytes to download in 1 requests; first up to {size // 2:,} in 64" in result.stdout
    assert "nothing was opened after 2 requests to list them" in result.stdout
    assert owner.bytes_sent == len(json.dumps(CONFIG))
    result = CliRunner().invoke(cli, ["scan", "org/tuned", "--dry-run", "--depth", "identity"])
    assert "at most 0 bytes to download in 0 requests" in result.stdout


def test_a_copy_that_is_here_is_compared_as_a_whole(owner: HubServer):
    folder = publish(owner, "tuned", fine_tuned())
    owner.forget()
    assert load_file(folder / "model.safetensors").keys() == network(0).keys()
    finding = only(str(folder))
    assert finding.cost.requests == finding.cost.bytes_avoided == 0
    assert "without downloading" not in finding.reason
