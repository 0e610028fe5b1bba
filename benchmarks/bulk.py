"""Scans of very many models: memory, speed, and what an interruption costs.

Run ``python -m benchmarks.bulk small|real|kill [--count N] [--jobs N] [--no-weights] [--folder DIR]``. The models are
copies of a few with other random weights: the time does not depend on them.

- ``small``: tiny ONNX and HuggingFace models; memory of the parent as the scan goes on, isolation per model, speed.
- ``real``: models of 5 to 20 MB (HuggingFace, timm and ONNX in turn), scanned, and loaded and asked as many images one
  after the other in this process without isolation; in turns, so that other work on the machine hits both. The start
  (imports) is left out on both sides: it is the same for ten models and ten thousand.
- ``kill``: the small models; the scan is killed (SIGKILL) in the middle and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.overhead import isolation
from fp_audit import Plan, ScanOptions, registration, scan, victims
from fp_audit.alignment import Probes
from fp_audit.audit import Outcome
from fp_audit.engine import cores
from fp_audit.model import as_images
from fp_audit.preprocess import NAMED
from fp_audit.sandbox import Sandbox
from fp_audit.types import Fingerprint, Null

CLASSES, PROBES, QUERIES = 10, 64, 100
SIDE = {"small": 16, "real": 64}
START = 12
"""Outcomes that are left out of the speed: the servers are importing."""

Write = Callable[[Path, np.random.Generator], None]
"""Writes one model with random weights into a new folder."""


def main() -> None:
    """Print the figures."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("small", "real", "kill"))
    parser.add_argument("--count", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-weights", action="store_true", help="leave weights out, which the loop does not compare")
    parser.add_argument("--folder", type=Path, help="where the models are written, and found again")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        os.environ["FP_AUDIT_HOME"] = str(Path(temporary) / "home")
        kind = "real" if options.what == "real" else "small"
        models = written(folder, kind, options.count or {"small": 1000, "real": 60, "kill": 200}[options.what])
        register(next(models.glob("*-onnx")), SIDE[kind], weights=not options.no_weights)
        {"small": small, "real": real, "kill": kill}[options.what](models, options)


def small(models: Path, options: argparse.Namespace) -> None:
    """Memory, isolation, speed."""
    with Sandbox(path=[Path(__file__).parents[1]]) as sandbox:
        spent = isolation(sandbox, next(models.glob("*-onnx")))
    print(f"isolation: {1000 * spent:.0f} ms a model (median of 20 children that do nothing)")
    memory: list[float] = []
    seconds = scanned(models, options, memory)
    for share in range(1, 11):
        print(f"{share * 10:4d} % done: {memory[len(memory) * share // 10 - 1]:.0f} MB in the parent")
    print(f"{rate(seconds):.0f} models a minute")


def real(models: Path, options: argparse.Namespace) -> None:
    """A scan against a loop by hand."""
    ratios = []
    for number in range(options.rounds):
        queries: dict[str, int] = {}
        scan_rate = rate(scanned(models, options, [], queries))
        clock = time.perf_counter(), time.process_time()
        loop_rate = rate(list(by_hand(models, queries)))
        busy = (time.process_time() - clock[1]) / (time.perf_counter() - clock[0])
        ratios.append(scan_rate / loop_rate)
        asked = statistics.mean(queries.values())
        print(
            f"round {number + 1}: scan --jobs {options.jobs} {scan_rate:.1f}, loop {loop_rate:.1f} models a minute "
            f"({busy:.2f} of {cores()} cores busy; {asked:.0f} images a model): {ratios[-1]:.2f} times",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.2f}")


def kill(models: Path, options: argparse.Namespace) -> None:
    """Kill a scan in the middle, resume it, and count what was done twice."""
    count = len(list(models.iterdir()))
    command = [sys.executable, "-c", "from fp_audit.cli import main; main()", "scan", str(models), "--format", "json"]
    command += ["--jobs", str(options.jobs), "--fail-on", "never"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(kept()) < count * 2 // 5 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = kept()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    findings = json.loads(done.stdout)["findings"]
    taken_over = sum(finding["cost"]["examined"] is not None for finding in findings)
    again = sum(kept()[key] != examined for key, examined in before.items())
    print(f"{count} models, killed with {len(before)} results on disk; resumed: {len(findings)} findings, of which")
    print(f"{taken_over} taken over; {again} done twice, {len(before) - taken_over} lost")


def kept() -> dict[str, str]:
    """Read the results on disk: key -> time."""
    path = victims.home() / "results.sqlite"
    if not path.exists():
        return {}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30) as connection:
        try:
            return dict(connection.execute("SELECT key, examined FROM outcomes"))
        except sqlite3.OperationalError:
            return {}


def scanned(
    models: Path, options: argparse.Namespace, memory: list[float], queries: dict[str, int] | None = None
) -> list[float]:
    """Scan, and return the time of each outcome, seconds.

    Args:
        models: folder of models.
        options: of the command line.
        memory: gets the parent's resident memory at each outcome, MB.
        queries: gets the images that each model was asked.
    """
    seconds = []

    def seen(outcome: Any, done: int, listed: int) -> None:
        assert isinstance(outcome, Outcome), outcome
        assert outcome.failure is None, outcome.failure
        seconds.append(time.perf_counter())
        memory.append(resident())
        if queries is not None:
            queries[outcome.artifact.target] = outcome.cost.queries

    list(scan(str(models), (), ScanOptions(jobs=options.jobs), seen=seen))
    return seconds


def rate(seconds: list[float]) -> float:
    """Models a minute once the start is over."""
    start = min(START, len(seconds) // 3)
    return 60 * (len(seconds) - 1 - start) / (seconds[-1] - seconds[start])


def resident() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def by_hand(models: Path, queries: dict[str, int]) -> Iterator[float]:
    """Load each model as a script would and ask it as many images; yield the time after each."""
    import torch

    from fp_audit_adapters._torchvision import ensure_torchvision

    ensure_torchvision()
    torch.set_num_threads(cores())
    for path in sorted(models.iterdir()):
        ask = {"onnx": hand_onnx, "hf": hand_hf, "timm": hand_timm}[path.name.rpartition("-")[2]](path)
        pixels = np.random.default_rng(0).integers(0, 256, (queries[path.name], 3, *2 * [SIDE["real"]]), np.uint8)
        mean, std = (np.reshape(np.float32(v), (1, 3, 1, 1)) for v in (NAMED["imagenet"].mean, NAMED["imagenet"].std))
        for start in range(0, len(pixels), QUERIES):
            ask((as_images(pixels[start : start + QUERIES]) - mean) / std)
        yield time.perf_counter()


def hand_onnx(path: Path) -> Callable[[np.ndarray], Any]:
    """Open with onnxruntime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def hand_hf(path: Path) -> Callable[[np.ndarray], Any]:
    """Open with transformers."""
    import torch
    from transformers import ResNetForImageClassification

    network = ResNetForImageClassification.from_pretrained(path).eval()
    return torch.inference_mode()(lambda images: network(torch.from_numpy(images)).logits.numpy())


def hand_timm(path: Path) -> Callable[[np.ndarray], Any]:
    """Open with timm."""
    import timm
    import torch

    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return torch.inference_mode()(lambda images: network(torch.from_numpy(images)).numpy())


def register(model: Path, side: int, *, weights: bool = True) -> None:
    """Register a victim: its weights as ``register`` does, and as many queries, which are random."""
    victim = registration.build(Plan(model=str(model), name="victim"))
    rng = np.random.default_rng(0)
    shape = (3, side, side)
    hard, boundary = (rng.integers(0, 256, (QUERIES, *shape), dtype=np.uint8) for _ in range(2))
    logits = rng.normal(size=(QUERIES, CLASSES)).astype(np.float32)
    arrays = {
        "negatives": {"queries": hard, "labels": logits.argmax(axis=1)},
        "negatives-logits": {"queries": hard, "logits": logits},
        "sac": {"queries": hard, "correlation": np.zeros((QUERIES, QUERIES), np.float32)},
        "ipguard": {"queries": boundary, "labels": logits.argmax(axis=1)},
    }
    pixels, labels = rng.integers(0, 256, (PROBES, *shape), dtype=np.uint8), np.arange(PROBES) % CLASSES
    asked = {name: Fingerprint(name, {"seed": 0}, held) for name, held in arrays.items()}
    nulls = {name: Null((0.1, 0.12, 0.08, 0.11), ("a", "b", "c", "d")) for name in arrays}
    victim = replace(
        victim,
        probes=Probes(pixels, labels, None, CLASSES, 1 / CLASSES),  # at chance: all models count as aligned
        preprocess=NAMED["imagenet"],
        fingerprints={**(victim.fingerprints if weights else {}), **asked},
        nulls={**victim.nulls, **nulls},
    )
    victims.save(victim, victims.folder("victim"))


def written(folder: Path, kind: str, count: int) -> Path:
    """Write ``count`` models, or find those that an earlier run wrote."""
    models = folder / f"{kind}-{count}"
    if models.exists():
        return models
    partial, rng = folder / f".{kind}-{count}", np.random.default_rng(0)
    shutil.rmtree(partial, ignore_errors=True)
    writers = [onnx_writer(kind), hf_writer(kind), *([timm_writer()] if kind == "real" else [])]
    for number in range(count):
        name, write = writers[number % len(writers)]
        (partial / f"{number:05d}-{name}").mkdir(parents=True)
        write(partial / f"{number:05d}-{name}", rng)
    partial.rename(models)
    return models


def onnx_writer(kind: str) -> tuple[str, Write]:
    """A plain network of 8 layers; 3 M weights if ``real``."""
    from onnx import TensorProto, helper, numpy_helper, save

    widths = (3, *((8, 16) if kind == "small" else (64, 128, 192, 256, 256, 256, 256)))

    def write(folder: Path, rng: np.random.Generator) -> None:
        nodes, weights, last = [], [], "images"
        for layer, (a, b) in enumerate(pairwise(widths)):
            value = rng.standard_normal((b, a, 3, 3), np.float32) * np.float32((2 / (9 * a)) ** 0.5)
            weights.append(numpy_helper.from_array(value, f"w{layer}"))
            strides = [2, 2] if layer % 2 == 0 else [1, 1]
            nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1] * 4, strides=strides))
            nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
            last = f"r{layer}"
        head = rng.standard_normal((widths[-1], CLASSES), np.float32)
        weights.append(numpy_helper.from_array(head, "head"))
        nodes.append(helper.make_node("ReduceMean", [last], ["mean"], axes=[2, 3], keepdims=0))
        nodes.append(helper.make_node("MatMul", ["mean", "head"], ["logits"]))
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE[kind], SIDE[kind]])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])
        graph = helper.make_graph(nodes, "bulk", [images], [logits], weights)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx")

    return "onnx", write


def hf_writer(kind: str) -> tuple[str, Write]:
    """A HuggingFace ResNet of four basic stages; 4.9 M weights if ``real``."""
    from fp_audit_adapters._torchvision import ensure_torchvision

    ensure_torchvision()
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [8, 8, 16, 16] if kind == "small" else [64, 128, 256, 512]
    base = TemporaryDirectory()
    names = {"id2label": {i: f"LABEL_{i}" for i in range(CLASSES)}}
    config = ResNetConfig(embedding_size=sizes[0], hidden_sizes=sizes, depths=[1] * 4, layer_type="basic", **names)
    ResNetForImageClassification(config).save_pretrained(base.name)
    processor = {"image_processor_type": "ConvNextImageProcessor", "do_resize": True, "do_normalize": True}
    processor |= {"size": {"shortest_edge": SIDE[kind]}, "crop_pct": 1.0, "do_rescale": True, "resample": 3}
    processor |= {"image_mean": NAMED["imagenet"].mean, "image_std": NAMED["imagenet"].std}
    (Path(base.name) / "preprocessor_config.json").write_text(json.dumps(processor))
    return "hf", copier(base)


def timm_writer() -> tuple[str, Write]:
    """timm's ``mobilenetv3_small_100``: 1.5 M weights, 6 MB, 12 blocks."""
    import timm

    base = TemporaryDirectory()
    network = timm.create_model("mobilenetv3_small_100", num_classes=CLASSES)
    network.pretrained_cfg |= {"input_size": (3, SIDE["real"], SIDE["real"]), "crop_pct": 1.0}
    timm.models.save_for_hf(network, base.name, safe_serialization=True)
    return "timm", copier(base)


def copier(base: TemporaryDirectory[str]) -> Write:
    """Return what copies a folder with noise added to its matrices."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(Path(base.name) / "model.safetensors")

    def write(folder: Path, rng: np.random.Generator) -> None:
        shutil.copytree(base.name, folder, dirs_exist_ok=True)
        noisy = {
            name: value + value.std() * rng.standard_normal(value.shape, np.float32) if value.ndim > 1 else value
            for name, value in tensors.items()
        }
        save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})

    return write


if __name__ == "__main__":
    main()
