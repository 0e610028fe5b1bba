"""Image classifiers in transformers' folder layout: ``config.json`` and safetensors.

transformers never sees the folder. The adapter reads the JSON and the tensors itself, keeps of the
configuration only the fields that the chosen class declares, and hands both over in memory; so there is no
file, no name and no ``auto_map`` left that could make the library fetch or run anything.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from numpy.typing import NDArray

from fp_audit.errors import (
    CorruptModel,
    TargetError,
    UnavailableTarget,
    UnsafeModel,
    UnsupportedModel,
    UsageError,
)
from fp_audit.model import Adapter, LoadOptions, Read, Unprepared, WhiteBox, target_of
from fp_audit.preprocess import Preprocess
from fp_audit.types import Access, Artifact, InputSpec, Listing, Skipped
from fp_audit_adapters._files import (
    REMOTE,
    Folder,
    check_plausible,
    folders,
    has_weights,
    local_read,
    one_line,
    read_json,
    read_tensors,
    remote_code,
    safetensors_paths,
    weight_files,
)
from fp_audit_adapters._hf_families import ARCHITECTURES, Family
from fp_audit_adapters._hf_processors import to_config, to_preprocess

if TYPE_CHECKING:
    from fp_audit_adapters._torch import TorchModel

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

_FOREIGN = ("backbone", "backbone_config", "use_timm_backbone", "use_pretrained_backbone")
_LIBRARIES = ("torch", "fp_audit_adapters._hf_ready")


@final
class HuggingFaceAdapter(Adapter):
    """Opens the architectures of ``_hf_families`` and answers with their logits.

    A folder without ``preprocessor_config.json`` does not say how it wants its images: ``load`` then gives an
    ``Unprepared`` model and ``load_white`` needs ``options.preprocess``. Either way images are resized to the
    ``image_size`` of the configuration, if it has one.
    """

    name = "huggingface"
    summary = "transformers image classifiers: config.json and safetensors"
    preload = {  # noqa: RUF012
        Access.WEIGHTS: ("numpy", "safetensors"),
        Access.QUERIES: _LIBRARIES,
        Access.GRADIENTS: _LIBRARIES,
    }

    def claim(self, listing: Listing, read: Read) -> Iterator[Artifact | Skipped]:
        """See ``Adapter.claim``. timm's folders, and any other ``config.json``, are passed over."""
        for folder in folders(listing):
            if CONFIG not in folder.files:
                continue
            target = target_of(listing, folder.path, alone=False)
            try:
                artifact = _claim(listing, folder, target, read)
            except TargetError as error:
                yield Skipped(target, str(error))
            else:
                if artifact is not None:
                    yield artifact

    def tensors(self, artifact: Artifact) -> dict[str, NDArray[Any]]:
        """See ``Adapter.tensors``. Half precision and 8 bit floats become float32."""
        return read_tensors(safetensors_paths(artifact))

    def _load(self, artifact: Artifact, options: LoadOptions) -> TorchModel | Unprepared:
        """See ``Adapter.load``. Raises as ``load_white``."""
        model = _open(artifact, options)
        stated = model.recipe["processor"] is not None or options.preprocess is not None
        return model if stated else _UnpreparedModel(model)

    def _load_white(self, artifact: Artifact, options: LoadOptions) -> TorchModel:
        """See ``Adapter.load_white``.

        Raises:
            UnsafeModel: the configuration names code.
            UnsupportedModel: the architecture or the image processor is not supported.
            CorruptModel: the configuration and the tensors do not fit each other.
            UsageError: neither the folder nor ``options`` says how images are preprocessed.
        """
        model = self._load(artifact, options)
        if isinstance(model, Unprepared):
            raise UsageError(f"{artifact.target} has no {PROCESSOR}: say how images are preprocessed")
        return model

    def _save(self, model: WhiteBox, folder: Path) -> None:
        """See ``Adapter.save``: loads again here and with transformers' ``from_pretrained``.

        Raises:
            UsageError: the model is not this adapter's, or its preprocessing has no image processor.
        """
        from fp_audit_adapters._torch import TorchModel

        if not isinstance(model, TorchModel) or model.adapter != self.name:
            raise UsageError("only a model that the huggingface adapter opened can be saved by it")
        processor = model.recipe["processor"]
        if processor is None or to_preprocess(processor, model.recipe["family"]) != model.preprocess:
            processor = to_config(model.preprocess, model.spec.channels)
        folder.mkdir(parents=True, exist_ok=True)
        with _quietly():
            network: Any = model.network
            network.save_pretrained(folder)
        (folder / PROCESSOR).write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


@final
class _UnpreparedModel(Unprepared):
    """A network without a processor's configuration; its size may still be known."""

    def __init__(self, model: TorchModel) -> None:
        self._model = model

    @property
    def spec(self) -> InputSpec:
        """See ``Unprepared.spec``."""
        return self._model.spec

    def with_preprocess(self, preprocess: Preprocess) -> TorchModel:
        """See ``Unprepared.with_preprocess``. A size it leaves open is the network's."""
        from fp_audit_adapters._torch import overruled

        return self._model.with_preprocess(overruled(self._model.preprocess, preprocess))


def _claim(listing: Listing, folder: Folder, target: str, read: Read) -> Artifact | None:
    """Claim one folder with a ``config.json``; None where it is not a transformers model."""
    try:
        config = read_json(read, folder.inside(CONFIG))
    except CorruptModel:
        if has_weights(folder):
            raise
        return None
    if "architecture" in config or not config.keys() & {"architectures", "model_type", *REMOTE}:
        return None
    check_config(config)
    try:
        weights = weight_files(folder, read)
    except UnavailableTarget:
        if any(file.path.endswith(".onnx") for file in listing.files if file.path.startswith(folder.inside(""))):
            return None  # an ONNX export keeps the configuration of the model it was made from
        raise
    present = (folder.files[name] for name in (CONFIG, PROCESSOR) if name in folder.files)
    return Artifact(
        target=target,
        adapter=HuggingFaceAdapter.name,
        files=(*present, *weights),
        entry=folder.path,
        root=listing.root,
        revision=listing.revision,
        listing=listing.target,
    )


def check_config(config: Mapping[str, Any]) -> str:
    """Return the supported architecture that a configuration names.

    Raises:
        UnsafeModel: it names code to run.
        UnsupportedModel: another architecture, a quantised network, or one that is put together from others.
        CorruptModel: it names one architecture and describes another.
    """
    if (code := remote_code(config)) is not None:
        raise UnsafeModel(f"{CONFIG} names remote code ({code}), which is never executed")
    foreign = [key for key in _FOREIGN if config.get(key)]
    if foreign:
        raise UnsupportedModel(f"{CONFIG} takes its network from elsewhere ({foreign[0]}): never fetched")
    if config.get("quantization_config"):
        raise UnsupportedModel(f"{CONFIG} describes a quantised network (quantization_config)")
    return _architecture(config)


def _architecture(config: Mapping[str, Any]) -> str:
    names, model_type = config.get("architectures"), config.get("model_type")
    if isinstance(names, list) and names:
        name = str(names[0])
    else:
        name = next(
            (name for name, family in ARCHITECTURES.items() if family.model_type == model_type),
            str(model_type),
        )
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{name[:80]} is not among the {len(ARCHITECTURES)} supported transformers image classifiers"
        )
    family: Family = ARCHITECTURES[name]
    if model_type not in (None, family.model_type):
        raise CorruptModel(f"{CONFIG} says architecture {name} and model type {str(model_type)[:80]!r}")
    return name


def _build(architecture: str, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Any:  # noqa: ANN401
    """Build the network that ``config`` describes and fill it with ``tensors``."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from fp_audit_adapters._torch import (
        BUILD_ERRORS,
        Uninitialised,
        check_size,
    )  # first: it makes transformers importable

    module = importlib.import_module(f"transformers.models.{ARCHITECTURES[architecture].module}")
    network_class = vars(module)[architecture]
    known = _known(network_class.config_class, config)
    check_plausible(known, tensors)
    try:
        settings = network_class.config_class(**known)
        with torch.device("meta"), Uninitialised():
            check_size(network_class(settings), tensors)
        state = {name: torch.from_numpy(value) for name, value in tensors.items()}
        with _quietly():
            network, report = network_class.from_pretrained(
                None,
                config=settings,
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (*BUILD_ERRORS, StrictDataclassError) as error:
        raise CorruptModel(f"{CONFIG} does not describe a {architecture}: {one_line(error)}") from error
    _check_report(architecture, report)
    return network


def _known(config_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Keep what the class itself declares: nothing that steers loading, attention kernels or quantisation."""
    from transformers.configuration_utils import PreTrainedConfig

    own = {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}
    own |= {"id2label", "label2id", "num_labels", *config_class.attribute_map}
    known = {key: value for key, value in config.items() if key in own}
    for key, nested in config_class.sub_configs.items():
        if isinstance(known.get(key), dict):
            known[key] = _known(nested, known[key])
    return known


def _check_report(architecture: str, report: Mapping[str, Any]) -> None:
    """Refuse a network that was completed with random weights. Superfluous tensors are ignored, as there."""
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        found = sorted(str(item[0] if isinstance(item, tuple) else item) for item in report[kind])
        if found:
            what = {"missing_keys": "lack", "mismatched_keys": "have another shape for"}.get(kind, "fail with")
            few = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise CorruptModel(f"the weights {what} {few} of the {architecture} in {CONFIG}")


def _open(artifact: Artifact, options: LoadOptions) -> TorchModel:
    from fp_audit_adapters._torch import TorchModel, limit_threads, overruled

    limit_threads(options)
    read = local_read(artifact.path)
    config = read_json(read, CONFIG)
    architecture = check_config(config)
    family = ARCHITECTURES[architecture].processor
    processor = read_json(read, PROCESSOR) if (artifact.path / PROCESSOR).is_file() else None
    preprocess = Preprocess() if processor is None else to_preprocess(processor, family)
    network = _build(architecture, config, read_tensors(safetensors_paths(artifact)))
    revert = vars(importlib.import_module("transformers.core_model_loading"))["revert_weight_conversion"]
    settings = network.config.to_dict()
    vision = settings.get("vision_config", settings)
    preprocess = _with_size(overruled(preprocess, options.preprocess), vision.get("image_size"))
    height, width = preprocess.crop or preprocess.resize or (None, None)
    return TorchModel(
        network,
        preprocess=preprocess,
        spec=InputSpec(vision["num_channels"], height, width),
        classes=_classes(config, network.config.num_labels),
        adapter=HuggingFaceAdapter.name,
        recipe={"processor": processor, "family": family},
        logits=attrgetter("logits"),
        as_stored=partial(revert, network),
        device=options.device,
    )


def _with_size(preprocess: Preprocess, size: int | list[int] | None) -> Preprocess:
    """Resize to the network's own size where the preprocessing leaves the size open."""
    if size is None or preprocess.resize or preprocess.shortest_edge or preprocess.crop:
        return preprocess
    height, width = (size, size) if isinstance(size, int) else size
    return replace(preprocess, resize=(height, width))


def _classes(config: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """Return the labels in output order; None where they are only ``LABEL_0`` and so on."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or any(str(i) not in labels for i in range(count)):
        return None
    names = tuple(str(labels[str(i)]) for i in range(count))
    return None if names == tuple(f"LABEL_{i}" for i in range(count)) else names


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence transformers' progress bars and load reports, whose content is in our errors."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
