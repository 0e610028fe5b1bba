"""What the weights method finds, what it lets pass, and how long it takes.

Run ``python -m benchmarks.lineage``. Everything is trained on the spot from scikit-learn's digits; some minutes.

1. Pairs of networks trained apart (one architecture, other seeds): p-values, and the share of hidden units whose
   counterparts agree, which the null hypothesis of ``fingerprints/_relabelled.py`` puts at one half at most.
2. Copies of one network in every disguise, as files, through ``fp_audit.compare`` at depth ``weights``.
3. A small language model: fine-tuned, permuted in all ways; low-rank adapters; siblings with and without ``--base``.
4. The time for a hundred matrices.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from fixtures import digits
from fp_audit import ScanOptions, Skipped, compare
from fp_audit.attacking import attack
from fp_audit.fingerprints._relabelled import relabelled
from fp_audit.fingerprints.weights import Weights
from fp_audit.subject import Subject
from fp_audit.types import Access

NETWORKS = 7
"""Of each kind: 21 pairs."""
DISGUISES = ("permute", "rescale", "fold", "reorder", "export", "reshard", "cast")


class Block(nn.Module):
    """A residual block with BatchNorm."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.n, self.m = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))


class Attention(nn.Module):
    """A transformer block."""

    def __init__(self, width):
        super().__init__()
        self.n, self.m = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.n(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.m(x))


class Tokens(nn.Module):
    """Cuts 8 x 8 images into 16 tokens of 4 pixels."""

    def __init__(self, width):
        super().__init__()
        self.project, self.positions = nn.Conv2d(1, width, 2, 2), nn.Parameter(0.02 * torch.randn(16, width))

    def forward(self, x):
        return self.project(x).flatten(2).transpose(1, 2) + self.positions


class Mean(nn.Module):
    """Averages tokens."""

    def forward(self, x):
        return x.mean(dim=1)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


def cnn():
    stem = [nn.Conv2d(1, 24, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, Block(24), Block(24), Block(24), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(96, 10))


def vit():
    return nn.Sequential(Tokens(32), Attention(32), Attention(32), Attention(32), Mean(), nn.Linear(32, 10))


def trained(make, seed, epochs=12):
    """Build and train a network."""
    torch.manual_seed(seed)
    return tuned(make(), seed, epochs)


def tuned(network, seed, epochs, rate=3e-3, half=None):
    """Train on all digits, or on one half of them."""
    pixels, labels = (torch.from_numpy(array) for array in digits.digits())
    if half is not None:
        pixels, labels = pixels[half::2], labels[half::2]
    images, draw = pixels.float() / 255, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=draw).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def arrays(network):
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def scored(ours, theirs):
    method = Weights()
    fingerprint = method.generate(Subject(tensors=lambda: ours), None, seed=0)
    return method.compare(fingerprint, Subject(tensors=lambda: theirs))


def independents():
    """Print the p-values of pairs that were trained apart."""
    every = []
    for make in (mlp, cnn, vit):
        networks = [arrays(trained(make, seed)) for seed in range(NETWORKS)]
        p_values, shares = [], [0.0]
        for a, b in itertools.combinations(networks, 2):
            p_values.append(scored(a, b).p_value)
            both = [[value for value in one.values() if value.ndim >= 2] for one in (a, b)]
            found = relabelled(*both, np.random.default_rng(0)).values()
            shares += [item.agreed / item.units for item in found if item.units >= 16]
        every += p_values
        print(f"{make.__name__:4} {len(p_values)} pairs: {spread(p_values)}; units agree: {max(shares):.2f} at most")
    print(f"all  {len(every)} pairs: {spread(every)}")


def spread(p_values):
    p = np.array(p_values)
    return f"least p {p.min():.2g}, p <= .05: {(p <= 0.05).mean():.3f}, p <= .01: {(p <= 0.01).mean():.3f}"


def stored(folder, tensors, config=None):
    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def verdict(name, a, b, base=None):
    """Compare two folders the way a user does."""
    options = ScanOptions(depth=Access.WEIGHTS, base=base and str(base))
    (item,) = compare(str(a), str(b), options=options)
    said = f"skipped          {item.reason}" if isinstance(item, Skipped) else f"{item.verdict:17}{item.reason}"
    print(f"  {name:42}{said}", flush=True)


def copies(root):
    """Print the verdicts on copies of a residual network, and on one that is none."""
    data, victim = root / "owner.npz", root / "victim"
    digits.write_data(root)
    digits.write_huggingface(victim, kind="resnet", seed=1)
    digits.train(victim, seed=1, epochs=5)
    for kind in DISGUISES:
        attack("disguise", str(victim), str(data), root / kind, options={"kind": kind})
        verdict(f"disguise, {kind}", victim, root / kind)
    attack("disguise", str(victim), str(data), root / "once", options={"kind": "permute"})
    attack("disguise", str(root / "once"), str(data), root / "twice", options={"kind": "rescale"})
    verdict("permuted, then rescaled", victim, root / "twice")
    for name, options in {"quantise": {"mode": "static"}, "prune-channels": {"rate": 0.3}}.items():
        attack(name, str(victim), str(data), root / name, options=options)
        verdict(name, victim, root / name)
    digits.write_huggingface(root / "other", kind="resnet", seed=2)
    digits.train(root / "other", seed=2, epochs=5)
    verdict("trained apart", victim, root / "other")


def cut(tensors, layers, keep, rng):
    """Remove hidden units of an MLP: those that stay come in a random order."""
    cut_ = dict(tensors)
    for first, second in layers:
        size = len(cut_[f"{first}.weight"])
        kept = rng.permutation(size)[: round(keep * size)]
        cut_[f"{first}.weight"], cut_[f"{first}.bias"] = cut_[f"{first}.weight"][kept], cut_[f"{first}.bias"][kept]
        cut_[f"{second}.weight"] = cut_[f"{second}.weight"][:, kept]
    return cut_


def cuts(root):
    """Print the verdicts on structurally pruned, permuted copies."""
    victim, rng = arrays(trained(mlp, 1)), np.random.default_rng(0)
    a = stored(root / "mlp", victim)
    for keep in (0.9, 0.7, 0.5):
        b = stored(root / f"cut{keep}", cut(victim, [("1", "3"), ("3", "5")], keep, rng))
        verdict(f"{keep:.0%} of the units kept, permuted", a, b)
    verdict("trained apart", a, stored(root / "mlp-other", arrays(trained(mlp, 2))))


def language_model(seed):
    from fp_audit_adapters._torchvision import ensure_torchvision

    ensure_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=200, n_positions=32, n_embd=64, n_layer=3, n_head=4)).eval()


def spoken(model, seed, steps=60, rate=1e-3):
    """Train on sequences that count in strides."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(steps):
        start, stride = torch.randint(0, 200, (32, 1), generator=draw), torch.randint(1, 9, (32, 1), generator=draw)
        tokens = (start + stride * torch.arange(24)) % 200
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model


def reordered(model, rng):
    """Permute residual stream, heads and neurons of a GPT-2 (whose plain matrices are in x out)."""
    t, stream = arrays(model), rng.permutation(64)
    heads = (rng.permutation(4)[:, None] * 16 + np.arange(16)).ravel()
    for name in list(t):
        if name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
            t[name] = t[name][:, stream]
        elif "ln_" in name:
            t[name] = t[name][stream]
    for i in range(3):
        block, neurons = f"transformer.h.{i}", rng.permutation(256)
        three = np.concatenate([heads, 64 + heads, 128 + heads])
        t[f"{block}.attn.c_attn.weight"] = t[f"{block}.attn.c_attn.weight"][stream][:, three]
        t[f"{block}.attn.c_attn.bias"] = t[f"{block}.attn.c_attn.bias"][three]
        t[f"{block}.attn.c_proj.weight"] = t[f"{block}.attn.c_proj.weight"][heads][:, stream]
        t[f"{block}.attn.c_proj.bias"] = t[f"{block}.attn.c_proj.bias"][stream]
        t[f"{block}.mlp.c_fc.weight"] = t[f"{block}.mlp.c_fc.weight"][stream][:, neurons]
        t[f"{block}.mlp.c_fc.bias"] = t[f"{block}.mlp.c_fc.bias"][neurons]
        t[f"{block}.mlp.c_proj.weight"] = t[f"{block}.mlp.c_proj.weight"][neurons][:, stream]
        t[f"{block}.mlp.c_proj.bias"] = t[f"{block}.mlp.c_proj.bias"][stream]
    return t


def twin(model):
    """Return another model with the same weights."""
    made = language_model(0)
    made.load_state_dict(model.state_dict())
    return made


def language(root):
    """Print the verdicts on relatives of a language model."""
    config, rng = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, np.random.default_rng(0)
    base = spoken(language_model(0), 0)
    victim = twin(base)
    first = stored(root / "base", arrays(base), config)
    a = stored(root / "victim", arrays(spoken(victim, 1, steps=20)), config)
    verdict("permuted throughout", a, stored(root / "permuted", reordered(victim, rng), config))
    child = twin(victim)
    c = stored(root / "child", arrays(spoken(child, 2, steps=10)), config)
    verdict("fine-tuned", a, c)
    verdict("fine-tuned, with --base", a, c, first)
    verdict("fine-tuned, permuted throughout", a, stored(root / "both", reordered(child, rng), config))
    sibling = twin(base)
    s = stored(root / "sibling", arrays(spoken(sibling, 3, steps=20)), config)
    verdict("sibling", a, s)
    verdict("sibling, with --base", a, s, first)
    other = arrays(spoken(language_model(9), 9))
    verdict("trained apart", a, stored(root / "other", other, config))
    part = {**other, **{name: value for name, value in arrays(victim).items() if ".h.1." in name}}
    verdict("trained apart, block 1 copied", a, stored(root / "part", part, config))


def siblings(root):
    """Print the verdicts on fine-tunes of one image network."""
    base = trained(cnn, 1)
    first = stored(root / "base", arrays(base))

    def child(seed, half, epochs=3):
        network = cnn()
        network.load_state_dict(base.state_dict())
        return tuned(network, seed, epochs, half=half)

    victim = child(1, 0)
    a = stored(root / "victim", arrays(victim))
    for name, half in {"other half of the data": 1, "the same data": 0}.items():
        s = stored(root / name, arrays(child(2, half)))
        verdict(f"sibling, {name}", a, s)
        verdict(f"sibling, {name}, with --base", a, s, first)
    s = stored(root / "longer", arrays(child(3, 0, epochs=12)))
    verdict("sibling, four times as long, --base", a, s, first)
    c = stored(root / "child", arrays(tuned(victim, 7, 1, rate=1e-3, half=1)))
    verdict("child, with --base", a, c, first)


def adapters(root):
    """Print the verdicts on low-rank adapters."""
    rng = np.random.default_rng(0)
    names = [f"base_model.model.layers.{i}.self_attn.{side}_proj" for i in range(4) for side in "qv"]
    ours = {f"{n}.lora_{s}.weight": rng.normal(size=(8, 96) if s == "A" else (96, 8)) for n in names for s in "AB"}
    turned = {}
    for name in names:
        turn = rng.normal(size=(8, 8))
        noise = 0.1 * rng.normal(size=(96, 8))
        turned[f"{name}.lora_A.weight"] = np.linalg.inv(turn) @ ours[f"{name}.lora_A.weight"]
        turned[f"{name}.lora_B.weight"] = (ours[f"{name}.lora_B.weight"] + noise) @ turn
    other = {name: rng.normal(size=value.shape) for name, value in ours.items()}
    folders = {name: stored(root / name, tensors) for name, tensors in {"ours": ours, "t": turned, "o": other}.items()}
    verdict("another basis, fine-tuned", folders["ours"], folders["t"])
    verdict("another adapter", folders["ours"], folders["o"])
    verdict("adapter against a full model", stored(root / "mlp", arrays(mlp())), folders["t"])


def speed():
    """Print the time for a hundred matrices."""
    rng = np.random.default_rng(0)
    shapes = [(384, 384), (384, 384), (1536, 384), (384, 1536)] * 25
    ours = {str(i): rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    near = {name: value + 0.1 * rng.normal(size=value.shape).astype(np.float32) for name, value in ours.items()}
    apart = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in ours.items()}
    for name, theirs in {"a copy": near, "independent": apart}.items():
        start = time.process_time()
        p = scored(ours, theirs).p_value
        print(f"  100 matrices, {name:12} p {p:.2g}, {time.process_time() - start:.1f} s of one core", flush=True)


def main():
    """Print everything."""
    torch.set_num_threads(1)
    parts = {"copies": copies, "structurally pruned": cuts, "fine-tunes of one base": siblings}
    parts |= {"language model": language, "adapters": adapters}
    speed()
    independents()
    for name, part in parts.items():
        print(f"{name}:")
        with TemporaryDirectory() as folder:
            part(Path(folder))


if __name__ == "__main__":
    main()
