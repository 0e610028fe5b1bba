"""Answers that were written down: what a model said to which image, so that it can be judged without being asked.

``Recorded`` writes down what the model underneath says, ``Answers`` is what was written, ``Replayed`` says it again.
Images are known by the digest of their pixels: all that is ever shown to a suspect are images that a file can hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import Unanswered
from fp_audit.model import BlackBox, Wrapper
from fp_audit.types import Images, InputSpec, OutputKind, Outputs, Pixels


def digest(image: NDArray[np.uint8]) -> str:
    """Name a C x H x W uint8 image by its content: 32 hexadecimal digits."""
    shape = "x".join(map(str, image.shape)).encode()
    return hashlib.sha256(shape + b"\0" + np.ascontiguousarray(image).tobytes()).hexdigest()[:32]


def digests(images: Images | Pixels) -> list[str]:
    """Name N x C x H x W images, uint8 or in [0, 1]; the latter are brought to the nearest uint8."""
    pixels = images if images.dtype == np.uint8 else np.rint(images * np.float32(255.0)).astype(np.uint8)
    return [digest(image) for image in pixels]


@dataclass(frozen=True)
class Answers:
    """What one model said."""

    output: OutputKind
    classes: tuple[str, ...] | None
    """Class names in output order, where the model names them."""
    rows: Mapping[str, NDArray[np.float32]]
    """Digest of an image -> K values."""

    def joined(self, other: Answers) -> Answers:
        """Return these and the others, of the same model; these where both answer one image."""
        return Answers(self.output, self.classes, {**other.rows, **self.rows})

    def to_json(self) -> dict[str, Any]:
        """Turn into JSON values; the numbers are float32 in base64, little-endian, row after row."""
        values = np.stack(list(self.rows.values())) if self.rows else np.zeros((0, 0))
        return {
            "output": self.output,
            "classes": self.classes,
            "images": list(self.rows),
            "values": base64.b64encode(values.astype("<f4").tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Restore from JSON values.

        Raises:
            ValueError: they are not ``to_json``'s.
        """
        try:
            images, classes = [str(name) for name in data["images"]], data["classes"]
            if data["output"] not in ("logits", "probabilities", "topk", "labels"):
                raise ValueError(f"output {data['output']!r}")
            values = np.frombuffer(base64.b64decode(data["values"], validate=True), "<f4").astype(np.float32)
            rows = values.reshape(len(images), -1) if images else values.reshape(0, 0)
            return cls(
                data["output"], tuple(map(str, classes)) if classes else None, dict(zip(images, rows, strict=True))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not recorded answers: {error}") from None


class Recorded(Wrapper):
    """Writes down what the model underneath says, and says no more than that.

    An image that is shown again gets its first answer: a model that answers at random is judged by what was written.
    """

    def __init__(self, model: BlackBox) -> None:
        super().__init__(model)
        self._rows: dict[str, NDArray[np.float32]] = {}

    @property
    def answers(self) -> Answers:
        """What was written down so far."""
        return Answers(self.output, self.classes, dict(self._rows))

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        names = digests(images)
        for name, answer in zip(names, self._model.predict(images), strict=True):
            self._rows.setdefault(name, answer)
        return np.stack([self._rows[name] for name in names])


class Replayed:
    """Says again what was written down. Satisfies ``BlackBox``."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.spec = InputSpec(3, None, None)
        self.classes = answers.classes
        self.output = answers.output

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``.

        Raises:
            Unanswered: some of the images were never shown to the model.
        """
        names = digests(images)
        missing = sum(name not in self._answers.rows for name in names)
        if missing:
            raise Unanswered(f"{missing} of {len(names)} images have no answer")
        return np.stack([self._answers.rows[name] for name in names])
