"""What a scan of hub repositories at depth weights costs, and whether it says what a scan of the same files says.

``python -m benchmarks.hub [--count 300] [--folder DIR]`` publishes repositories on a local hub
(``tests/hub_server.py``, asked by the real client), scans them there and on disk, and prints bytes and requests as the
hub counted them. Weights are random numbers: fine-tunes are the victim's plus noise, and nobody asks these models.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from hub_server import HubServer, serving

WIDTHS = (3, 64, 64, 128, 128, 256, 256)
CONVOLUTIONS = [(after, before, 3, 3) for before, after in pairwise(WIDTHS)]
SHAPES = [*CONVOLUTIONS, (384, 256), (10, 384)]
"""Of the victim, 5 MB."""
RESNET18 = [(64, 3, 7, 7), *[(64, 64, 3, 3)] * 4, (128, 64, 3, 3), *[(128, 128, 3, 3)] * 3, (256, 128, 3, 3)]
RESNET18 += [*[(256, 256, 3, 3)] * 3, (512, 256, 3, 3), *[(512, 512, 3, 3)] * 3, (1000, 512)]
VIT = [(192, 3, 16, 16), *[(192, 192)] * 16, *[(768, 192), (192, 768)] * 4, (1000, 192)]
NARROW = [(40, 3, 5, 5), (90, 40, 5, 5), (180, 90, 5, 5), (300, 180, 5, 5), (10, 300)]
CONFIG = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
TEXT = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}

MIX = {
    "copy": 20,
    "renamed tensors": 20,
    "fine-tune": 30,
    "pruned": 20,
    "fp16": 15,
    "bf16": 10,
    "onnx": 10,
    "int8": 10,
    "permuted": 15,
    "same architecture": 30,
    "vit": 40,
    "narrow": 24,
    "resnet18": 6,
    "text": 20,
    "broken": 15,
    "bin only": 15,
}
"""Repositories of each kind, of 300."""
SURROGATES = ("copy", "renamed tensors", "fine-tune", "pruned", "fp16", "bf16", "onnx", "int8", "permuted")
FOUND = ("identical", "derived")


def network(rng: np.random.Generator, shapes=SHAPES):
    return {
        f"layer{i}.weight": rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
        for i, shape in enumerate(shapes)
    }


def changed(rng: np.random.Generator, tensors, amount: float):
    return {
        name: value + np.float32(amount * value.std()) * rng.normal(size=value.shape).astype(np.float32)
        for name, value in tensors.items()
    }


def permuted(rng: np.random.Generator, tensors):
    """Relabel the hidden units of every layer; the function stays the same."""
    order, found = np.arange(3), {}
    for name, value in tensors.items():
        rows = np.arange(len(value)) if len(value) == 10 else rng.permutation(len(value))
        found[name], order = np.ascontiguousarray(value[rows][:, order]), rows  # safetensors stores memory as it lies
    return found


def onnx_model(tensors, *, int8: bool):
    """Write the network as a graph: convolutions, the mean over the image, two layers."""
    nodes, stored, last = [], [], "x"
    for i, (name, value) in enumerate(tensors.items()):
        weight = name
        if int8:
            scale = np.abs(value).reshape(len(value), -1).max(axis=1).astype(np.float32) / 127
            level = np.round(value / scale.reshape(-1, *[1] * (value.ndim - 1))).astype(np.int8)
            stored += [numpy_helper.from_array(level, f"{name}_q"), numpy_helper.from_array(scale, f"{name}_s")]
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [name], axis=0))
        else:
            stored.append(numpy_helper.from_array(value, name))
        if value.ndim == 2 and last.startswith("c"):
            nodes += [helper.make_node("GlobalAveragePool", [last], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
            last = "f"
        if value.ndim == 4:
            nodes.append(helper.make_node("Conv", [last, weight], [f"c{i}"], pads=[1, 1, 1, 1]))
            last = f"c{i}"
        else:
            nodes.append(helper.make_node("Gemm", [last, weight], [f"g{i}"], transB=1))
            last = f"g{i}"
    image = helper.make_tensor_value_info("x", 1, ["n", 3, 32, 32])
    scores = helper.make_tensor_value_info(last, 1, ["n", 10])
    graph = helper.make_graph(nodes, "g", [image], [scores], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def tensors_of(kind: str, rng: np.random.Generator, victim):
    """Make the tensors of one repository."""
    made = {
        "copy": lambda: victim,
        "renamed tensors": lambda: {f"backbone.{name}": value for name, value in victim.items()},
        "fine-tune": lambda: changed(rng, victim, rng.uniform(0.02, 0.4)),
        "pruned": lambda: {n: np.where(np.abs(v) < np.quantile(np.abs(v), 0.4), 0, v) for n, v in victim.items()},
        "fp16": lambda: {name: value.astype(np.float16) for name, value in changed(rng, victim, 0.01).items()},
        "bf16": lambda: {n: v.astype(ml_dtypes.bfloat16) for n, v in changed(rng, victim, 0.01).items()},
        "onnx": lambda: changed(rng, victim, 0.05),
        "int8": lambda: changed(rng, victim, 0.05),
        "permuted": lambda: permuted(rng, victim),
        "same architecture": lambda: network(rng),
        "vit": lambda: network(rng, VIT),
        "narrow": lambda: network(rng, NARROW),
        "resnet18": lambda: network(rng, RESNET18),
        "text": lambda: network(rng, [(3000, 128), *[(128, 128)] * 8]),
    }
    return made[kind]()


def publish(folder: Path, kind: str, rng: np.random.Generator, victim) -> None:
    """Write one repository."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# a model\n")
    if kind in ("onnx", "int8"):
        (folder / "model.onnx").write_bytes(onnx_model(tensors_of(kind, rng, victim), int8=kind == "int8"))
        return
    (folder / "config.json").write_text(json.dumps(TEXT if kind == "text" else CONFIG))
    if kind == "bin only":
        (folder / "pytorch_model.bin").write_bytes(rng.bytes(2_000_000))
    elif kind == "broken":
        (folder / "model.safetensors").write_bytes((10**5).to_bytes(8, "little") + rng.bytes(2_000_000))
    else:
        save_file(tensors_of(kind, rng, victim), folder / "model.safetensors", metadata={"format": "pt"})


def scanned(targets):
    """Scan at depth weights: by target, the verdict or ``skipped``, and the cost."""
    from fp_audit import Finding, ScanOptions, scan
    from fp_audit.types import Access

    start = time.perf_counter()
    found = {item.target: item for item in scan(targets, "v", ScanOptions(depth=Access.WEIGHTS, jobs=1))}
    verdicts = {name: str(item.verdict) if isinstance(item, Finding) else "skipped" for name, item in found.items()}
    costs = {name: item.cost for name, item in found.items() if isinstance(item, Finding)}
    return verdicts, costs, time.perf_counter() - start


def spread(numbers) -> str:
    return f"median {np.median(numbers):,.0f}, 90th percentile {np.quantile(numbers, 0.9):,.0f}"


def report(hub: HubServer, kinds, online, disk, costs) -> None:
    """Print what the hub counted, and where the two scans differ."""
    requests = Counter("/".join(r.split("/")[-2:] if "/api/" in r else r.split("/")[1:3]) for r in hub.requests)
    sent: Counter[str] = Counter()
    for path, count in hub.sent.items():
        sent["/".join(path.split("/")[1:3])] += count
    print(f"{'kind':18} {'n':>3} {'requests':>9} {'bytes':>11}  verdicts on the hub / on disk")
    for kind in MIX:
        names = [name for name, each in kinds.items() if each == kind]
        pairs = [dict(Counter(found[name] for name in names)) for found in (online, disk)]
        middle = [np.median([counter[name] for name in names]) if names else 0 for counter in (requests, sent)]
        print(f"{kind:18} {len(names):3} {middle[0]:9,.0f} {middle[1]:11,.0f}  {pairs[0]} / {pairs[1]}")
    print(f"bytes a repository:    {spread([sent[name] for name in kinds])}")
    print(f"requests a repository: {spread([requests[name] for name in kinds])}")
    wrong = [name for name, cost in costs.items() if (cost.requests, cost.bytes_read) != (requests[name], sent[name])]
    print(f"costs in the report that differ from what the hub counted: {len(wrong)} of {len(costs)}")
    stolen = [name for name, kind in kinds.items() if kind in SURROGATES]
    apart = [name for name in stolen if (online[name] in FOUND) != (disk[name] in FOUND)]
    other = [name for name in kinds if name not in stolen and online[name] != disk[name]]
    print(f"surrogates found by one scan only: {len(apart)} of {len(stolen)}; other verdicts that differ: {len(other)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="Where repositories are written (1.5 GB for 300).")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, serving(Path(name) / "hub") as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": f"{name}/hf", "HF_HUB_CACHE": f"{name}/hf/hub"}
        os.environ["FP_AUDIT_HOME"] = f"{name}/home"
        from fp_audit import Plan, register

        rng = np.random.default_rng(0)
        victim = network(rng)
        publish(hub.folder / "owner" / "victim", "copy", rng, victim)
        register(Plan("owner/victim", "v", methods=("identity", "weights")))
        kinds = {}
        for kind, share in MIX.items():
            for i in range(max(1, round(share * options.count / 300))):
                kinds[f"org/{kind.replace(' ', '-')}-{i}"] = kind
                publish(hub.folder / list(kinds)[-1], kind, rng, victim)
        size = sum(path.stat().st_size for path in (hub.folder / "org").rglob("*") if path.is_file())
        print(f"{len(kinds)} repositories, {size:,} bytes", flush=True)
        scanned("org/copy-0")
        hub.forget()
        online, costs, seconds = scanned("org/")
        print(f"scanned on the hub in {seconds:.0f} s, {hub.bytes_sent:,} bytes of files", flush=True)
        disk, _, seconds = scanned([str(hub.folder / name) for name in kinds])
        print(f"scanned on disk in {seconds:.0f} s")
        disk = {name: disk[str(hub.folder / name)] for name in kinds}
        report(hub, kinds, online, disk, costs)


if __name__ == "__main__":
    main()
