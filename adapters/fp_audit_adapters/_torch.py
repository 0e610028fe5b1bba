"""What the torch adapters share: one model class around a network and its preprocessing.

Importing this module makes torchvision importable (see ``_torchvision``), so it must come before transformers
and timm; it imports neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fp_audit.errors import CorruptModel, UnsupportedModel, UsageError
from fp_audit.model import LoadOptions
from fp_audit.preprocess import AffineMap, Preprocess, affine_map
from fp_audit.types import Images, InputSpec, OutputKind, Outputs
from fp_audit_adapters._files import one_line
from fp_audit_adapters._torchvision import ensure_torchvision

ensure_torchvision()

BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a library raises for a configuration that makes no sense; not a list of bugs to hide elsewhere."""

_BATCH_VALUES = 2**23
"""Input values in one batch: 55 images of 3 x 224 x 224. A network holds some dozens of times as much."""
_MAX_BATCH = 512
_PROBE = 64
"""Height and width of the image that finds the layers of a network which takes any size."""

StateDict: TypeAlias = dict[str, Tensor]


_DRAWING = frozenset(
    {
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.erfinv_,
        nn.init.uniform_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.kaiming_uniform_,
        nn.init.kaiming_normal_,
        nn.init.xavier_uniform_,
        nn.init.xavier_normal_,
    }
)
"""What fills a tensor with random numbers."""


class Uninitialised(TorchFunctionMode):
    """While it is active, networks are built without drawing random weights: all of them are loaded afterwards."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Return the tensor as it is where it would be filled with random numbers."""
        given = kwargs or {}
        if func in _DRAWING:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def check_size(skeleton: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Compare a network built on the ``meta`` device with the tensors that are to fill it.

    Raises:
        CorruptModel: the file cannot hold the network's parameters, or its constants would dwarf them.
    """
    held = sum(value.size for value in tensors.values())
    wanted = sum(parameter.numel() for parameter in skeleton.parameters())
    constant = sum(buffer.numel() for buffer in skeleton.buffers())
    if wanted > held:
        raise CorruptModel(f"config.json describes {wanted:,} parameters and the weights hold {held:,} numbers")
    if constant > 16 * held + 10**7:
        raise CorruptModel(f"config.json describes {constant:,} constants for {wanted:,} parameters")


def limit_threads(options: LoadOptions) -> None:
    """Apply ``options.threads``, which torch keeps for the whole process."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def overruled(stated: Preprocess, chosen: Preprocess | None) -> Preprocess:
    """Return the preprocessing to use. A chosen one that says nothing about sizes leaves them as stated."""
    if chosen is None:
        return stated
    if chosen.resize or chosen.shortest_edge or chosen.crop:
        return chosen
    return replace(stated, scale=chosen.scale, mean=chosen.mean, std=chosen.std, bgr=chosen.bgr)


class Preprocessed(nn.Module):
    """A network behind its preprocessing: N x C x H x W images in [0, 1] to N x K logits, differentiable."""

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, channels: int, logits: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.network = network
        self._preprocess, self._channels, self._logits = preprocess, channels, logits
        self._maps: dict[tuple[torch.Size, torch.device, torch.dtype], AffineMap] = {}

    def prepare(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to what the network takes, N x C' x H' x W'."""
        key = (images.shape[1:], images.device, images.dtype)
        if key not in self._maps:
            channels, height, width = images.shape[1:]
            fitted = affine_map(self._preprocess, (height, width), channels, self._channels)
            self._maps[key] = _as_torch(fitted, images)
        prepared: Tensor = self._maps[key](images)
        return prepared

    def forward(self, images: Tensor) -> Tensor:
        """Answer images with logits."""
        return self._logits(self.network(self.prepare(images)))


def _as_torch(fitted: AffineMap, like: Tensor) -> AffineMap:
    moved: dict[str, Any] = {}
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        for field in fields(fitted):
            value = getattr(fitted, field.name)
            is_array = isinstance(value, np.ndarray)
            moved[field.name] = torch.from_numpy(value).to(like.device, like.dtype) if is_array else value
    return AffineMap(**moved)


class _Reached(Exception):
    """Ends a forward pass at the layer that was asked for."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def _identity(value: Any) -> Any:  # noqa: ANN401
    return value


@final
class TorchModel:
    """A torch network that satisfies ``WhiteBox``.

    ``network`` is the bare network in its own input space, for training and surgery; changes to its weights
    are seen by ``predict`` at once. ``recipe`` is what the adapter called ``adapter`` needs to save it again.
    """

    output: OutputKind = "logits"

    def __init__(
        self,
        network: nn.Module,
        *,
        preprocess: Preprocess,
        spec: InputSpec,
        classes: tuple[str, ...] | None,
        adapter: str,
        recipe: Mapping[str, Any],
        logits: Callable[[Any], Tensor] = _identity,
        as_stored: Callable[[StateDict], StateDict] = _identity,
        device: str = "cpu",
    ) -> None:
        """Wrap a network.

        Args:
            network: takes N x ``spec.channels`` x H x W; moved to ``device`` and put into evaluation mode.
            preprocess: how images in [0, 1] become its input.
            spec: what it takes.
            classes: names in output order, if it has any.
            adapter: name of the adapter that can save it.
            recipe: what that adapter keeps for saving, JSON values.
            logits: takes the logits, N x K, out of what the network returns.
            as_stored: brings a state dict into the names that the model's file uses.
            device: for example ``cpu`` or ``cuda``.
        """
        if not {len(preprocess.mean), len(preprocess.std)} <= {1, spec.channels}:
            raise CorruptModel(f"mean {preprocess.mean} and std {preprocess.std} do not fit {spec.channels} channels")
        self.network = network.to(device).eval()
        self.preprocess, self.spec, self.classes = preprocess, spec, classes
        self.adapter, self.recipe = adapter, recipe
        self._logits, self._as_stored, self._device = logits, as_stored, device
        self._module = Preprocessed(self.network, preprocess, spec.channels, logits)
        self._layers: tuple[str, ...] | None = None

    @property
    def module(self) -> nn.Module:
        """See ``WhiteBox.module``. Always the same object; reading it puts it into evaluation mode."""
        return self._module.eval()

    def with_network(self, network: nn.Module) -> TorchModel:
        """Return a model around another network of the same interface, for example a pruned copy."""
        return self._copy(network, self.preprocess)

    def with_preprocess(self, preprocess: Preprocess) -> TorchModel:
        """Return a model around the same network, fed through another preprocessing."""
        return self._copy(self.network, preprocess)

    def _copy(self, network: nn.Module, preprocess: Preprocess) -> TorchModel:
        return TorchModel(
            network,
            preprocess=preprocess,
            spec=self.spec,
            classes=self.classes,
            adapter=self.adapter,
            recipe=self.recipe,
            logits=self._logits,
            as_stored=self._as_stored,
            device=self._device,
        )

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``. Answers do not depend on how the images are cut into batches.

        Raises:
            UnsupportedModel: the network cannot take images of this size.
        """
        module = self.module
        with torch.inference_mode():
            answers = [self._run(module, batch).float().cpu().numpy() for batch in self._batches(images)]
        return np.concatenate(answers)

    def layers(self) -> tuple[str, ...]:
        """See ``WhiteBox.layers``: modules whose first call gives one tensor a batch, in order of completion.

        Found once, by running the network on two black images.
        """
        if self._layers is None:
            self._layers = tuple(self._trace())
        return self._layers

    def activations(self, images: Images, layer: str) -> NDArray[np.float32]:
        """See ``WhiteBox.activations``. Of a layer that runs several times, the first call counts."""
        self._known(layer)
        with torch.inference_mode():
            outputs = [self._reach(batch, layer).float().cpu().numpy() for batch in self._batches(images)]
        return np.concatenate(outputs)

    def prepare(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to what the network takes; gradients flow."""
        return self._module.prepare(images)

    def activate(self, images: Tensor, layer: str) -> Tensor:
        """See ``WhiteBox.activate``."""
        self._known(layer)
        return self._reach(images, layer)

    def _known(self, layer: str) -> None:
        if layer not in self.layers():
            near = ", ".join(self.layers()[:5])
            raise UsageError(f"no layer called {layer!r}: expected one of {len(self.layers())}, such as {near}")

    def _reach(self, batch: Tensor, layer: str) -> Tensor:
        """Run the network as far as ``layer``."""
        handle = self.network.get_submodule(layer).register_forward_hook(_stop)
        try:
            self._run(self.module, batch)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise UnsupportedModel(f"the layer {layer!r} was not run")

    def tensors(self) -> dict[str, NDArray[Any]]:
        """See ``WhiteBox.tensors``: a copy of the present weights under the names of the model's file."""
        stored = self._as_stored(dict(self.network.state_dict()))
        return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in stored.items()}

    def _batches(self, images: Images) -> Iterator[Tensor]:
        height, width = self.spec.height or images.shape[2], self.spec.width or images.shape[3]
        size = min(max(_BATCH_VALUES // (self.spec.channels * height * width), 1), _MAX_BATCH)
        for start in range(0, max(len(images), 1), size):
            batch = np.ascontiguousarray(images[start : start + size], np.float32)
            yield torch.tensor(batch, device=self._device)

    def _run(self, module: nn.Module, batch: Tensor) -> Tensor:
        try:
            answer: Tensor = module(batch)
        except BUILD_ERRORS as error:
            size = "x".join(map(str, batch.shape[2:]))
            raise UnsupportedModel(f"the network fails on {size} images: {one_line(error)}") from error
        return answer

    def _trace(self) -> Iterator[str]:
        names = {layer: name for name, layer in self.network.named_modules() if name}
        calls: list[tuple[str, bool]] = []

        def note(layer: nn.Module, _: object, output: object) -> None:
            calls.append((names[layer], isinstance(output, Tensor) and output.ndim > 1 and len(output) == 2))

        handles = [layer.register_forward_hook(note) for layer in names]
        height, width = self.spec.height or _PROBE, self.spec.width or _PROBE
        try:
            with torch.inference_mode():
                self._run(self.module, torch.zeros(2, self.spec.channels, height, width, device=self._device))
        finally:
            for handle in handles:
                handle.remove()
        first = dict(reversed(calls))
        return (name for name in dict.fromkeys(name for name, _ in calls) if first[name])


def _stop(_: nn.Module, __: object, output: Tensor) -> None:
    raise _Reached(output)
