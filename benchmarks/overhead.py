"""What a scan costs beyond running the model: isolation per model, and the whole against a loop by hand.

Run ``python -m benchmarks.overhead``. A ResNet-18-sized ONNX file at 224 x 224 is made on the spot; its weights are
random, the time does not depend on them. The two ways take turns, so that other work on the machine hits both.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fp_audit import audit, victims
from fp_audit.alignment import Probes
from fp_audit.engine import cores
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import NAMED
from fp_audit.sandbox import Sandbox
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import locate_one
from fp_audit.types import Access, Fingerprint, Null

QUERIES, PROBES, REPEATS = 100, 64, 3


def main() -> None:
    """Print the figures."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with TemporaryDirectory() as folder:
        model = Path(folder) / "resnet18.onnx"
        export(model)
        victim, where = pretend_victim(model, Path(folder) / "victims" / "resnet18")
        located = locate_one(str(model), SourceOptions())
        load = LoadOptions(threads=cores())
        with Sandbox(path=[Path(__file__).parents[1]]) as sandbox:
            print(
                f"fixed cost of isolation per model: {1000 * isolation(sandbox, model):.0f} ms (median of 20 children)"
            )
            job = audit.Job({where: victim}, load=load)
            scan, by_hand = [], []
            audit.examine(located, job, sandbox, 1)  # starts the server
            for _ in range(REPEATS):
                start = time.perf_counter()
                outcome = audit.examine(located, job, sandbox, 1)
                scan.append(time.perf_counter() - start)
                assert isinstance(outcome, audit.Outcome), outcome
                assert outcome.failure is None, outcome.failure
                start = time.perf_counter()
                run_by_hand(model, victim)
                by_hand.append(time.perf_counter() - start)
    queries = outcome.cost.queries
    print(f"{QUERIES} queries a method, all black-box methods, {queries} images asked in all, {cores()} threads")
    print(f"scan     {' '.join(f'{seconds:6.2f}' for seconds in scan)} s")
    print(f"by hand  {' '.join(f'{seconds:6.2f}' for seconds in by_hand)} s")
    ratios = [a / b for a, b in zip(scan, by_hand, strict=True)]
    print(f"ratio of each pair: {' '.join(f'{ratio:.2f}' for ratio in ratios)}; median {statistics.median(ratios):.2f}")


def export(path: Path) -> None:
    """Write a ResNet-18 with random weights."""
    import torch

    from fp_audit_adapters._torchvision import ensure_torchvision

    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=10).eval()
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(network, (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False, dynamic_axes=axes, **names)


def pretend_victim(model: Path, where: Path) -> tuple[victims.Victim, Path]:
    """Register fingerprints of the right sizes without generating them: two query sets, shared as in ``register``."""
    rng = np.random.default_rng(0)
    hard, boundary = (rng.integers(0, 256, (QUERIES, 3, 224, 224), dtype=np.uint8) for _ in range(2))
    probes = rng.integers(0, 256, (PROBES, 3, 224, 224), dtype=np.uint8)
    session = open_session(model)
    labels = ask(session, probes).argmax(axis=1)
    random = rng.normal(size=(QUERIES, 10)).astype(np.float32)
    arrays = {
        "negatives": {"queries": hard, "labels": random.argmax(axis=1)},
        "negatives-logits": {"queries": hard, "logits": random},
        "sac": {"queries": hard, "correlation": np.zeros((QUERIES, QUERIES), np.float32)},
        "ipguard": {"queries": boundary, "labels": random.argmax(axis=1)},
    }
    fingerprints = {name: Fingerprint(name, {"seed": 0}, held) for name, held in arrays.items()}
    nulls = {name: Null((0.1, 0.12, 0.08, 0.11), ("a", "b", "c", "d")) for name in arrays}
    victim = victims.Victim(
        name="resnet18",
        source="resnet18.onnx",
        revision=None,
        adapter="onnx",
        probes=Probes(probes, labels, None, 10, 1.0),
        preprocess=NAMED["imagenet"],
        fingerprints=fingerprints,
        nulls=nulls,
    )
    victims.save(victim, where)
    return victim, where


def isolation(sandbox: Sandbox, model: Path) -> float:
    """Median seconds of a child that does nothing: fork, confine, one round trip, end."""
    preload = audit.preload("onnx", Access.QUERIES)
    spent = []
    for _ in range(21):
        start = time.perf_counter()
        with sandbox.child("benchmarks.overhead:idle", preload, readable=[model]) as child:
            child.call({})
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def idle():
    """Return the handler of a child that does nothing."""
    return lambda request: request


def open_session(model: Path):
    """Load the model as a script would."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = cores()
    return onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])


def ask(session, pixels):
    """Run images as a script would, in batches of 25."""
    mean, std = (np.reshape(np.float32(v), (1, 3, 1, 1)) for v in (NAMED["imagenet"].mean, NAMED["imagenet"].std))
    batches = [((as_images(pixels[i : i + 25]) - mean) / std) for i in range(0, len(pixels), 25)]
    return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])


def run_by_hand(model: Path, victim: victims.Victim) -> None:
    """Load the model and run the same images in this process."""
    session = open_session(model)
    assert victim.probes is not None
    ask(session, victim.probes.pixels)
    for name in ("negatives", "ipguard"):
        ask(session, victim.fingerprints[name].arrays["queries"])


if __name__ == "__main__":
    main()
