"""ONNX files: asked through onnxruntime, opened through a torch executor of the graph."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import CorruptModel, UnsupportedModel, UsageError
from fp_audit.model import Adapter, BlackBox, LoadOptions, Read, Unprepared, WhiteBox, target_of
from fp_audit.preprocess import AffineMap, Preprocess, affine_map
from fp_audit.types import Access, Artifact, File, Images, InputSpec, Listing, OutputKind, Outputs, Skipped
from fp_audit_adapters._files import folders

if TYPE_CHECKING:
    import onnxruntime
    import torch
    from onnx import ModelProto

    from fp_audit_adapters._onnx import GraphSpec

logger = logging.getLogger(__name__)

BATCH_PIXELS = 2**22
"""Pixels (all channels) given to onnxruntime at once: 1,365 images of 3 x 32 x 32, 27 of 3 x 224 x 224."""


class OnnxAdapter(Adapter):
    """Image classifiers in ONNX files, float or int8 (QDQ or dynamically quantised).

    A file is parsed once, checked (see ``_onnx.graph``) and handed to onnxruntime from memory: what runs is what was
    checked. Custom-operator libraries are never loaded. ONNX files do not state their preprocessing, so ``load``
    returns an ``Unprepared`` model unless the options give it.
    """

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "image classifiers in .onnx files, float and int8"
    preload: ClassVar[Mapping[Access, tuple[str, ...]]] = {
        Access.WEIGHTS: ("numpy", "onnx", "fp_audit_adapters._onnx"),
        Access.QUERIES: ("numpy", "onnx", "onnxruntime", "fp_audit_adapters._onnx"),
        Access.GRADIENTS: ("numpy", "onnx", "onnxruntime", "torch", "fp_audit_adapters._onnx.executor"),
    }

    def claim(self, listing: Listing, read: Read) -> Iterator[Artifact | Skipped]:
        """Claim every ``.onnx`` file, with the data files beside it whose names begin with its own."""
        del read
        for folder in folders(listing):
            yield from self._claim(listing, list(folder.files.values()))

    def _claim(self, listing: Listing, files: list[File]) -> Iterator[Artifact]:
        """Claim the models among the files of one folder."""
        alone = sum(_is_model(file) for file in files) == 1
        for file in files:
            if not file.path.lower().endswith(".onnx"):
                continue
            if listing.root is not None and listing.files == (file,):
                target = listing.target
            else:
                target = target_of(listing, file.path, alone=alone)
            beside = tuple(other for other in files if other is not file and other.path.startswith(file.path))
            yield Artifact(
                target, self.name, (file, *beside), file.path, listing.root, listing.revision, listing.target
            )

    def tensors(self, artifact: Artifact) -> dict[str, NDArray[Any]]:
        """See ``Adapter.tensors``."""
        from fp_audit_adapters._onnx import tensors

        return tensors(_read(artifact))

    def _load(self, artifact: Artifact, options: LoadOptions) -> BlackBox | Unprepared:
        """See ``Adapter.load``."""
        opened = _Session(artifact, options)
        return opened if options.preprocess is None else opened.with_preprocess(options.preprocess)

    def _load_white(self, artifact: Artifact, options: LoadOptions) -> WhiteBox:
        """See ``Adapter.load_white``."""
        if options.preprocess is None:
            raise UsageError(f"{artifact.target} does not say how images are preprocessed: pass --preprocess or --data")
        return OnnxWhiteBox(artifact, options.preprocess, options.device)

    def _save(self, model: WhiteBox, folder: Path) -> None:
        """Write ``model.onnx`` with the present weights."""
        if not isinstance(model, OnnxWhiteBox):
            raise UsageError("the onnx adapter saves only models that it opened")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model.serialised())


class _Session(Unprepared):
    """An onnxruntime session whose preprocessing is not known."""

    def __init__(self, artifact: Artifact, options: LoadOptions) -> None:
        from fp_audit_adapters._onnx import describe

        model = _read(artifact)
        self.graph = describe(model)
        self._spec = _input_spec(self.graph)
        self.runtime = _session(model.SerializeToString(), options, artifact.entry)

    @property
    def spec(self) -> InputSpec:
        """See ``Unprepared.spec``."""
        return self._spec

    def with_preprocess(self, preprocess: Preprocess) -> BlackBox:
        """See ``Unprepared.with_preprocess``."""
        return OnnxBlackBox(self, preprocess)


class OnnxBlackBox:
    """An onnxruntime session with its preprocessing."""

    def __init__(self, session: _Session, preprocess: Preprocess) -> None:
        self._session = session
        self._preprocess = _sized(preprocess, session.spec)

    @property
    def spec(self) -> InputSpec:
        """See ``BlackBox.spec``."""
        return self._session.spec

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Always None: an ONNX file does not name its classes."""
        return None

    @property
    def output(self) -> OutputKind:
        """``probabilities`` if the graph ends in a softmax, else ``logits``."""
        return "probabilities" if self._session.graph.probabilities else "logits"

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        graph = self._session.graph
        prepare = _prepare(self._preprocess, self.spec, images)
        fixed = graph.input_shape[0] if graph.input_shape else None
        answers = []
        step = fixed or max(1, BATCH_PIXELS // _pixels(self.spec, images))
        for start in range(0, len(images), step):
            block = prepare(images[start : start + step]).astype(graph.input_dtype, copy=False)
            short = step - len(block) if fixed else 0
            if short:
                block = np.pad(block, ((0, short), (0, 0), (0, 0), (0, 0)))
            answer = self._session.runtime.run([graph.output_name], {graph.input_name: block})[0]
            answers.append(answer[: len(answer) - short].astype(np.float32, copy=False))
        return np.concatenate(answers) if answers else np.empty((0, graph.classes or 0), np.float32)


class OnnxWhiteBox:
    """The torch executor of a graph with its preprocessing inside. Satisfies ``WhiteBox``.

    A graph that ends in a softmax answers with the logarithm of its probabilities: logits up to a constant.
    """

    output: OutputKind = "logits"
    classes: tuple[str, ...] | None = None

    def __init__(self, artifact: Artifact, preprocess: Preprocess, device: str) -> None:
        from fp_audit_adapters._onnx import OnnxModule, describe
        from fp_audit_adapters._torch import TorchModel

        self._proto = _read(artifact)
        graph = describe(self._proto)
        self.spec = _input_spec(graph)
        self.network = OnnxModule(self._proto)
        self._preprocess, self._device = _sized(preprocess, self.spec), device
        self._model = TorchModel(
            self.network,
            preprocess=self._preprocess,
            spec=self.spec,
            classes=None,
            adapter=OnnxAdapter.name,
            recipe={},
            logits=_log if graph.probabilities else _unchanged,
            device=device,
        )

    @property
    def module(self) -> torch.nn.Module:
        """See ``WhiteBox.module``."""
        return self._model.module

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        return self._model.predict(images)

    def layers(self) -> tuple[str, ...]:
        """See ``WhiteBox.layers``: the graph's nodes."""
        return self.network.layers()

    def activations(self, images: Images, layer: str) -> NDArray[np.float32]:
        """See ``WhiteBox.activations``. What comes after the layer is not run."""
        import torch

        step = max(1, BATCH_PIXELS // _pixels(self.spec, images))
        blocks = (torch.from_numpy(images[i : i + step]).to(self._device) for i in range(0, len(images), step))
        with torch.inference_mode():
            return np.concatenate([self.activate(block, layer).float().cpu().numpy() for block in blocks])

    def activate(self, images: torch.Tensor, layer: str) -> torch.Tensor:
        """See ``WhiteBox.activate``."""
        if layer not in self.layers():
            raise UsageError(
                f"no layer called {layer!r}: expected one of {len(self.layers())}, "
                f"such as {', '.join(self.layers()[:5])}"
            )
        return self.network.activations(self._model.prepare(images), layer)

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """See ``WhiteBox.tensors``."""
        from fp_audit_adapters._onnx import tensors

        return tensors(self.network.write_back(self._proto))

    def serialised(self) -> bytes:
        """Return the ONNX file with the present weights."""
        written: bytes = self.network.write_back(self._proto).SerializeToString()
        return written


def _read(artifact: Artifact) -> ModelProto:
    from fp_audit_adapters._onnx import read_model

    return read_model(artifact.path, artifact.path.parent)


def _session(model: bytes, options: LoadOptions, name: str) -> onnxruntime.InferenceSession:
    """Open a checked model from memory, on the CUDA provider if asked for and present."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    try:
        return onnxruntime.InferenceSession(model, settings, providers=_providers(onnxruntime, options.device))
    except (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.RuntimeException) as error:
        raise CorruptModel(f"{name}: onnxruntime refuses the graph ({_first_line(error)})") from None
    except state.NotImplemented as error:
        raise UnsupportedModel(f"{name}: onnxruntime lacks an operator ({_first_line(error)})") from None


def _providers(onnxruntime: Any, device: str) -> list[str]:  # noqa: ANN401
    """Name the CUDA provider where it is asked for and there; a torch with CUDA does not bring one along."""
    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        logger.warning("this onnxruntime has no CUDA provider: ONNX models answer on the CPU (see onnxruntime-gpu)")
        return ["CPUExecutionProvider"]
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _input_spec(graph: GraphSpec) -> InputSpec:
    shape = graph.input_shape
    if shape is None or shape[1] not in (1, 3):
        raise UnsupportedModel(f"takes inputs of shape {shape}; expected images, N x C x H x W with 1 or 3 channels")
    return InputSpec(channels=shape[1], height=shape[2], width=shape[3])


def _prepare(preprocess: Preprocess, spec: InputSpec, images: Images) -> AffineMap:
    _, channels, height, width = images.shape
    return affine_map(preprocess, (height, width), channels, spec.channels)


def _sized(preprocess: Preprocess, spec: InputSpec) -> Preprocess:
    """Resize to what the graph takes, unless the preprocessing says how."""
    if spec.height is None or spec.width is None or preprocess.resize or preprocess.shortest_edge:
        return preprocess
    return replace(preprocess, resize=(spec.height, spec.width))


def _pixels(spec: InputSpec, images: Images) -> int:
    return spec.channels * (spec.height or images.shape[2]) * (spec.width or images.shape[3])


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.clamp_min(1e-12).log()


def _unchanged(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _is_model(file: File) -> bool:
    return file.path.lower().endswith((".onnx", ".safetensors"))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
