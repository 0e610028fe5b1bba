"""One interface for every model, the wrappers that limit it, and what an adapter must offer.

A method sees a ``BlackBox`` (images in, answers out) or a ``WhiteBox`` (also a torch module, activations and
tensors). Adapters make them; wrappers change what is seen without touching the model underneath:
``Counted`` counts queries, ``Averaged`` asks several times, ``Memoised`` answers a repeated batch from memory,
``Finite`` refuses NaN, ``TopK`` and
``LabelOnly`` hide what an API would hide, ``Widened`` adds classes that a suspect never named, ``Reordered`` brings its
classes into the victim's order, ``Randomised`` puts the random preprocessing in front that a model folder states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from fp_audit import augmentation
from fp_audit.augmentation import Augmentation
from fp_audit.errors import CorruptModel
from fp_audit.preprocess import Preprocess
from fp_audit.types import Access, Artifact, Images, InputSpec, Listing, OutputKind, Outputs, Skipped

if TYPE_CHECKING:
    import torch

Read: TypeAlias = Callable[[str], bytes]
"""Reads one small file of a listing by its path; raises ``TargetError`` where it is missing or too large."""


WEIGHTS = (".safetensors", ".onnx", ".h5", ".keras", ".pb", ".tflite", ".gguf", ".msgpack")
"""Endings of files that hold weights and are no pickles."""


class BlackBox(Protocol):
    """A model that can be asked."""

    @property
    def spec(self) -> InputSpec:
        """What the network itself takes; ``predict`` takes any size and one or three channels."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in output order; None where the model names none (or only ``LABEL_0`` and the like)."""

    @property
    def output(self) -> OutputKind:
        """What the columns of ``predict`` are."""

    def predict(self, images: Images) -> Outputs:
        """Answer N x C x H x W images in [0, 1] with N x K floats. Any N, in batches that fit."""


class Unprepared(ABC):
    """An opened model whose file does not say how it wants its images: it cannot be asked before that is settled."""

    @abstractmethod
    def with_preprocess(self, preprocess: Preprocess) -> BlackBox:
        """Return the same model, fed through ``preprocess``. Costs nothing: the model is not opened again."""

    @property
    @abstractmethod
    def spec(self) -> InputSpec:
        """See ``BlackBox.spec``."""


class WhiteBox(BlackBox, Protocol):
    """A model that can also be opened."""

    @property
    def module(self) -> torch.nn.Module:
        """The network from [0, 1] images (its preprocessing included) to logits, in evaluation mode."""

    def layers(self) -> tuple[str, ...]:
        """Names of the layers that ``activations`` accepts, input side first."""

    def activations(self, images: Images, layer: str) -> NDArray[np.float32]:
        """Return the output of ``layer``, N x ..., for images in [0, 1]. Raises ``UsageError`` for an unknown name."""

    def activate(self, images: torch.Tensor, layer: str) -> torch.Tensor:
        """Return the same as a tensor through which gradients flow; what comes after ``layer`` is not run.

        Args:
            images: N x C x H x W in [0, 1], on the module's device; all in one batch.
            layer: one of ``layers()``.
        """

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Return the parameters and buffers by name."""


@dataclass(frozen=True)
class LoadOptions:
    """How a model is opened."""

    device: str = "cpu"
    threads: int | None = None
    """Threads of one operator; None leaves the library's choice."""
    preprocess: Preprocess | None = None
    """Overrules what the file states."""
    seed: int | None = None
    """What a model with random preprocessing draws follows from it, query after query; None: never the same twice."""


class Adapter(ABC):
    """How one kind of model file is recognised, opened and saved. Subclasses are final.

    ``claim`` runs in the parent process on names and JSON alone; ``tensors``, ``load`` and ``load_white``
    run in a child when the model is a suspect's. The random preprocessing that a folder may state (see
    ``augmentation``) is none of a subclass's business: ``load``, ``load_white`` and ``save`` see to it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``fp-audit adapters``."""
    preload: ClassVar[Mapping[Access, tuple[str, ...]]]
    """Modules that a process must have imported to give this access quickly."""
    gives: ClassVar[frozenset[Access]] = frozenset(Access)
    """The accesses that its files can give: not all where they hold what a model said and not the model."""
    fallback: ClassVar[bool] = False
    """Whether it claims what other adapters left, or had to skip: then their reason becomes ``Artifact.unrun``."""

    @abstractmethod
    def claim(self, listing: Listing, read: Read) -> Iterator[Artifact | Skipped]:
        """Find this adapter's models in a listing, however deep.

        A model that this adapter recognises but must not or cannot open is ``Skipped`` with the reason.
        ``Artifact.target`` is set with ``target_of``.
        """

    def lacking(self, artifact: Artifact) -> str:
        """Say why a model's files do not give every access; empty where they do."""
        del artifact
        return ""

    @abstractmethod
    def tensors(self, artifact: Artifact) -> dict[str, NDArray[Any]]:
        """Read every tensor of a fetched artifact, int8 ones dequantised, without building the model."""

    @final
    def load(self, artifact: Artifact, options: LoadOptions) -> BlackBox | Unprepared:
        """Open a fetched artifact for queries."""
        opened, random = self._load(artifact, options), augmentation.stated(artifact)
        if random is None:
            return opened
        if isinstance(opened, Unprepared):
            return _UnpreparedRandomised(opened, random, options.seed)
        return Randomised(opened, random, options.seed)

    @final
    def load_white(self, artifact: Artifact, options: LoadOptions) -> WhiteBox:
        """Open a fetched artifact with gradients. Where the file does not state its preprocessing, ``options`` must."""
        opened, random = self._load_white(artifact, options), augmentation.stated(artifact)
        return opened if random is None else RandomisedWhite(opened, random, options.seed)

    @final
    def save(self, model: WhiteBox, folder: Path) -> None:
        """Write a model that this adapter opened, with its present weights, as an ordinary model folder."""
        (folder / augmentation.FILE).unlink(missing_ok=True)
        if isinstance(model, RandomisedWhite):
            self._save(model.inner, folder)
            model.augmentation.save(folder)
        else:
            self._save(model, folder)

    @abstractmethod
    def _load(self, artifact: Artifact, options: LoadOptions) -> BlackBox | Unprepared:
        """Do the work of ``load``."""

    @abstractmethod
    def _load_white(self, artifact: Artifact, options: LoadOptions) -> WhiteBox:
        """Do the work of ``load_white``."""

    @abstractmethod
    def _save(self, model: WhiteBox, folder: Path) -> None:
        """Do the work of ``save``."""


def target_of(listing: Listing, entry: str, alone: bool) -> str:
    """Name a model as a person would.

    Args:
        listing: where it was found.
        entry: the model's folder or file, relative to the listing's root.
        alone: whether it is the only model in its folder.
    """
    if entry == ".":
        return listing.target
    path = Path(entry)
    if alone and path.suffix:
        path = path.parent
    if str(path) == ".":
        return listing.target
    return str(Path(listing.target) / path) if listing.revision else path.as_posix()


class Wrapper:
    """Passes everything through; the base of the wrappers below."""

    def __init__(self, model: BlackBox) -> None:
        self._model = model

    @property
    def spec(self) -> InputSpec:
        """See ``BlackBox.spec``."""
        return self._model.spec

    @property
    def classes(self) -> tuple[str, ...] | None:
        """See ``BlackBox.classes``."""
        return self._model.classes

    @property
    def output(self) -> OutputKind:
        """See ``BlackBox.output``."""
        return self._model.output


class Counted(Wrapper):
    """Counts the images that the model underneath was asked."""

    def __init__(self, model: BlackBox) -> None:
        super().__init__(model)
        self.queries = 0

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        self.queries += len(images)
        return self._model.predict(images)


class Averaged(Wrapper):
    """Asks a model that answers at random several times: mean logits or probabilities, or the commonest label."""

    def __init__(self, model: BlackBox, times: int) -> None:
        super().__init__(model)
        self._times = times

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``. Of labels that are equally common the first is taken."""
        mean = np.mean([self._model.predict(images) for _ in range(self._times)], axis=0, dtype=np.float64)
        if self.output == "labels":
            return one_hot(mean.argmax(axis=1), mean.shape[1])
        return np.asarray(mean, np.float32)


class Memoised(Wrapper):
    """Asks each distinct batch once: methods, and victims, that share images share the answers.

    Batches are known by their shape and Python's hash of their bytes (SipHash, 64 bits, keyed anew in every process):
    ten times as fast as sha256, and no suspect chooses what it is asked.
    """

    def __init__(self, model: BlackBox) -> None:
        super().__init__(model)
        self.fresh = Counted(model)
        """The same model, without the memory."""
        self._answers: dict[tuple[tuple[int, ...], int], Outputs] = {}

    @classmethod
    def of(cls, model: BlackBox) -> Memoised:
        """Give a model a memory, unless it has one."""
        return model if isinstance(model, Memoised) else cls(model)

    @property
    def queries(self) -> int:
        """Images that the model underneath was really asked."""
        return self.fresh.queries

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        key = images.shape, hash(images.tobytes())
        if key not in self._answers:
            self._answers[key] = self.fresh.predict(images)
        return self._answers[key]


@final
class MemoisedUnprepared(Unprepared):
    """The same for a model whose preprocessing is not known yet: one memory for each that is tried."""

    def __init__(self, model: Unprepared) -> None:
        self._model = model
        self._prepared: dict[Preprocess, Memoised] = {}

    @property
    def spec(self) -> InputSpec:
        """See ``Unprepared.spec``."""
        return self._model.spec

    @property
    def queries(self) -> int:
        """See ``Memoised.queries``."""
        return sum(model.queries for model in self._prepared.values())

    def with_preprocess(self, preprocess: Preprocess) -> Memoised:
        """See ``Unprepared.with_preprocess``."""
        if preprocess not in self._prepared:
            self._prepared[preprocess] = Memoised.of(self._model.with_preprocess(preprocess))
        return self._prepared[preprocess]


def memoised(opened: BlackBox | Unprepared) -> Memoised | MemoisedUnprepared:
    """Give an opened model a memory, unless it has one."""
    if isinstance(opened, MemoisedUnprepared):
        return opened
    return MemoisedUnprepared(opened) if isinstance(opened, Unprepared) else Memoised.of(opened)


class Finite(Wrapper):
    """Refuses answers that are not numbers: a method would turn them into a score that means nothing."""

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``.

        Raises:
            CorruptModel: an answer is NaN or infinite.
        """
        answers = self._model.predict(images)
        if not np.isfinite(answers).all():
            raise CorruptModel("it answers with NaN or infinity")
        return answers


class TopK(Wrapper):
    """Shows the k largest probabilities and zeros elsewhere, as many APIs do."""

    def __init__(self, model: BlackBox, k: int) -> None:
        super().__init__(model)
        self._k = k

    @property
    def output(self) -> OutputKind:
        """Always ``topk``."""
        return "topk"

    def predict(self, images: Images) -> Outputs:
        """Answer with N x K probabilities of which at most k a row are not zero."""
        shown = as_probabilities(self._model.predict(images), self._model.output)
        hidden = np.argsort(shown, axis=1, kind="stable")[:, : -self._k]
        shown = shown.copy()
        np.put_along_axis(shown, hidden, 0.0, axis=1)
        return shown


class LabelOnly(Wrapper):
    """Shows the top-1 label as a one-hot row."""

    @property
    def output(self) -> OutputKind:
        """Always ``labels``."""
        return "labels"

    def predict(self, images: Images) -> Outputs:
        """Answer with N x K rows that hold a single one."""
        answers = self._model.predict(images)
        return one_hot(answers.argmax(axis=1), answers.shape[1])


TOP_K = 3
"""Probabilities that are looked at where a suspect shows its largest ones only."""


def cut(model: BlackBox, shown: str) -> BlackBox:
    """Hide all but the ``TOP_K`` largest probabilities (``topk``) or all but the label (``labels``)."""
    return LabelOnly(model) if shown == "labels" else TopK(model, TOP_K)


HIDDEN = ("topk", "labels")
"""Outputs that hide something; scores of such a suspect mean something else, and have nulls of their own."""


class Widened(Wrapper):
    """Shows zeros for further classes: a model that only shows the likeliest ones need not have shown them all."""

    def __init__(self, model: BlackBox, count: int, classes: tuple[str, ...] | None) -> None:
        super().__init__(model)
        self._count = count
        self._classes = classes

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names, with those of the further classes."""
        return self._classes

    def predict(self, images: Images) -> Outputs:
        """Answer with at least ``count`` columns."""
        answers = self._model.predict(images)
        return np.pad(answers, ((0, 0), (0, max(0, self._count - answers.shape[1]))))


class Reordered(Wrapper):
    """Shows chosen columns of the answers, so that column i means the victim's class i."""

    def __init__(self, model: BlackBox, order: Iterable[int], classes: tuple[str, ...] | None) -> None:
        super().__init__(model)
        self._order = np.fromiter(order, np.intp)
        self._classes = classes

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names after reordering."""
        return self._classes

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        return np.ascontiguousarray(self._model.predict(images)[:, self._order])


class Randomised(Wrapper):
    """Shows the model underneath every image through a random preprocessing, drawn anew for each query."""

    def __init__(self, model: BlackBox, random: Augmentation, seed: int | None) -> None:
        super().__init__(model)
        self.augmentation = random
        self._draws = np.random.default_rng(seed)

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        return self._model.predict(self.augmentation.apply(images, self._draws))


@final
class _UnpreparedRandomised(Unprepared):
    """A random model whose own, fixed preprocessing is not known yet."""

    def __init__(self, model: Unprepared, random: Augmentation, seed: int | None) -> None:
        self._model, self._random, self._seed = model, random, seed

    @property
    def spec(self) -> InputSpec:
        """See ``Unprepared.spec``."""
        return self._model.spec

    def with_preprocess(self, preprocess: Preprocess) -> BlackBox:
        """See ``Unprepared.with_preprocess``. The random one comes before it."""
        return Randomised(self._model.with_preprocess(preprocess), self._random, self._seed)


@final
class RandomisedWhite(Randomised):
    """The same around a model that can be opened. Satisfies ``WhiteBox``."""

    def __init__(self, model: WhiteBox, random: Augmentation, seed: int | None) -> None:
        from fp_audit.augmented import Augmented

        super().__init__(model, random, seed)
        self.inner = model
        self._module = Augmented(model.module, random, self._draws)

    @property
    def module(self) -> torch.nn.Module:
        """See ``WhiteBox.module``. Two passes never see the same images."""
        return self._module.eval()

    def layers(self) -> tuple[str, ...]:
        """See ``WhiteBox.layers``."""
        return self.inner.layers()

    def activations(self, images: Images, layer: str) -> NDArray[np.float32]:
        """See ``WhiteBox.activations``."""
        return self.inner.activations(self.augmentation.apply(images, self._draws), layer)

    def activate(self, images: torch.Tensor, layer: str) -> torch.Tensor:
        """See ``WhiteBox.activate``."""
        return self.inner.activate(self.augmentation.apply_torch(images, self._draws), layer)

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """See ``WhiteBox.tensors``."""
        return self.inner.tensors()


def as_probabilities(answers: Outputs, kind: OutputKind) -> Outputs:
    """Turn answers of any kind into rows of probabilities (softmax for logits, unchanged otherwise)."""
    if kind != "logits":
        return answers
    shifted = np.exp(answers - answers.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def one_hot(labels: NDArray[np.intp], classes: int) -> Outputs:
    """Write N labels as N x K rows that hold a single one."""
    rows = np.zeros((len(labels), classes), np.float32)
    np.put_along_axis(rows, labels[:, None], 1.0, axis=1)
    return rows


def as_images(pixels: NDArray[np.uint8]) -> Images:
    """Turn stored uint8 pixels into images in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255.0)
