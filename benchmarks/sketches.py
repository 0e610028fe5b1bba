"""How well sketches tell copies from independents, and how fast an index is searched.

``python -m benchmarks.sketches DIR``: trains 50 networks of one architecture (a small ResNet on scikit-learn's digits),
attacks the first three in every way that keeps weights, and prints for each kind of attack the smallest and the mean
similarity with the victim, and the recall at the similarity that 1 % of the pairs of independents reach and at the
one from which `fp-audit index search` says "scan it". Then it searches 100,000 synthetic entries. Models are kept in
DIR: about ten minutes the first time, one minute later.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from fixtures import digits
from fp_audit import attack
from fp_audit.errors import FpAuditError
from fp_audit.index import Index, Place
from fp_audit.sketches import SIMILAR, SIZE, VIEWS, Sketch, similarities, sketch
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one

INDEPENDENTS = 50
VICTIMS = 3
ENTRIES = 100_000
ATTACKS: dict[str, tuple[str, dict[str, object], tuple[str, ...]]] = {
    "fine-tune ftll": ("fine-tune", {"mode": "ftll"}, ()),
    "fine-tune ftal": ("fine-tune", {"mode": "ftal"}, ()),
    "fine-tune rtal": ("fine-tune", {"mode": "rtal"}, ()),
    "fine-tune hard": ("fine-tune", {"epochs": 20.0, "learning_rate": 0.02}, ()),
    "prune .3": ("prune", {"rate": 0.3}, ()),
    "prune .6": ("prune", {"rate": 0.6}, ()),
    "prune .9": ("prune", {"rate": 0.9}, ()),
    "prune .6, tune": ("prune", {"rate": 0.6, "epochs": 5.0}, ()),
    "prune channels": ("prune-channels", {"rate": 0.2}, ()),
    "int8 static": ("quantise", {"mode": "static"}, ()),
    "int8 dynamic": ("quantise", {"mode": "dynamic"}, ()),
    "fp16": ("quantise", {"mode": "fp16"}, ()),
    "bf16": ("quantise", {"mode": "bf16"}, ()),
    **{
        kind: ("disguise", {"kind": kind}, ())
        for kind in ("permute", "rescale", "fold", "reorder", "export", "reshard", "cast")
    },
    "tune, permute": ("fine-tune", {"mode": "ftal"}, ("disguise:kind=permute",)),
    "prune .3, permute, rescale": ("prune", {"rate": 0.3}, ("disguise:kind=permute", "disguise:kind=rescale")),
    "extract (no weights)": ("extract", {}, ()),
}


def sketched(folder: Path) -> Sketch:
    """Sketch a model folder in this process: we made it ourselves."""
    located = locate_one(str(folder), SourceOptions(offline=True))
    artifact = located.source.fetch(located.artifact)
    return sketch(adapter(artifact.adapter).tensors(artifact).values())


def independents(root: Path) -> list[Path]:
    folders = [root / "independent" / str(seed) for seed in range(INDEPENDENTS)]
    for seed, folder in enumerate(folders):
        if not folder.exists():
            digits.write_huggingface(folder, kind="resnet", seed=seed)
            digits.train(folder, seed=seed, epochs=8)
    return folders


def surrogates(victim: Path, root: Path) -> dict[str, Path | None]:
    """Attack one victim in every way; None where an attack does not apply."""
    made: dict[str, Path | None] = {}
    for number, (name, (kind, options, chain)) in enumerate(ATTACKS.items()):
        made[name] = folder = root / "surrogates" / victim.name / f"{number:02}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                attack(kind, str(victim), str(root / "thief.npz"), folder, options=options, chain=chain)
            except FpAuditError as error:
                print(f"{name}: {error}")
                made[name] = None
    return made


def separation(root: Path) -> None:
    folders = independents(root)
    made = [sketched(folder) for folder in folders]
    null = np.array([near(one, other) for one, other in combinations(made, 2)])
    bound = float(np.quantile(null, 0.99))
    print(
        f"{len(null)} pairs of {len(made)} independents: "
        f"mean {null.mean():.3f}, 99 % {bound:.3f}, most {null.max():.3f}"
    )
    print(f"{'attack':28} smallest   mean  recall at {bound:.2f}, at {SIMILAR}")
    found: dict[str, list[float]] = {}
    for victim, ours in zip(folders[:VICTIMS], made, strict=False):
        for name, folder in surrogates(victim, root).items():
            if folder is not None:
                found.setdefault(name, []).append(near(ours, sketched(folder)))
    for name, values in found.items():
        here = np.array(values)
        recalls = f"{(here > bound).mean():14.0%} {(here >= SIMILAR).mean():8.0%}"
        print(f"{name:28} {here.min():8.2f} {here.mean():6.2f} {recalls}")
    copies = np.concatenate([values for name, values in found.items() if not name.startswith("extract")])
    print(f"all but extract: {(copies > bound).mean():.1%} at 1 % FPR, {(copies >= SIMILAR).mean():.1%} at {SIMILAR}")


def near(one: Sketch, other: Sketch) -> float:
    return float(similarities(one, other.views[None])[0])


def speed() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, Index(Path(folder) / "i", create=True) as index:
        rows = []
        for number in range(ENTRIES):
            views = rng.normal(size=(len(VIEWS), SIZE)).astype(np.float32)
            views /= np.linalg.norm(views, axis=1, keepdims=True)
            rows.append((str(number), "{}", views.astype("<f2").tobytes()))
        with index._file as file:
            file.executemany("INSERT INTO sketches VALUES (?, ?, ?)", rows)
            file.executemany("INSERT INTO models VALUES (?, ?, ?)", [(row[0], row[0], row[0]) for row in rows])
        query = Sketch(np.frombuffer(rows[7][2], np.float16).reshape(len(VIEWS), SIZE), {})
        start = time.perf_counter()
        (best, *_) = index.nearest(query, 10)
        first = time.perf_counter() - start
        assert best.place == Place("7", "7")
        start = time.perf_counter()
        for _ in range(5):
            index.nearest(query, 10)
        each = (time.perf_counter() - start) / 5
        size = (Path(folder) / "i").stat().st_size / ENTRIES
    print(f"{ENTRIES:,} entries: first search {first:.2f} s (reads the file), then {each:.2f} s a model")
    print(f"= {ENTRIES / each:,.0f} comparisons a second; {size:,.0f} bytes an entry")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder
    root.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if not (root / "thief.npz").exists():
        digits.write_data(root)
    separation(root)
    speed()


if __name__ == "__main__":
    main()
