"""Image classifiers in timm's hub layout: ``config.json`` with ``architecture``, and safetensors.

Every architecture of the installed timm. timm never sees the folder: its ``hf-hub:``, ``local-dir:``, ``url``
and ``file`` sources are not used, and what the configuration says about sources is dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from numpy.typing import NDArray

from fp_audit.errors import CorruptModel, TargetError, UnsafeModel, UnsupportedModel, UsageError
from fp_audit.model import Adapter, LoadOptions, Read, WhiteBox, target_of
from fp_audit.preprocess import IMAGENET_MEAN, IMAGENET_STD, Filter, Preprocess
from fp_audit.types import Access, Artifact, InputSpec, Listing, Skipped
from fp_audit_adapters._files import (
    Folder,
    check_plausible,
    folders,
    local_read,
    one_line,
    read_json,
    read_tensors,
    safetensors_paths,
    weight_files,
)

if TYPE_CHECKING:
    from torch import nn

    from fp_audit_adapters._torch import TorchModel

CONFIG = "config.json"
MAX_SIZE = 8192
"""Largest input height or width, pixels."""

_LIBRARIES = ("torch", "fp_audit_adapters._torch", "timm")
_SOURCES = frozenset({"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"})
_STEERING = re.compile(
    r"pretrained.*|checkpoint.*|cache_dir|feature.*|out_indices|kwargs_filter|model_cfg|device|dtype|scriptable|"
    r"exportable|no_jit|hf.*"
)
"""Arguments of timm's factory that steer loading; a model's own arguments describe its layers."""


class TimmAdapter(Adapter):
    """Opens folders as timm's ``save_for_hf`` and its hub repositories write them.

    Preprocessing is timm's ``create_transform`` for evaluation at ``input_size`` (not ``test_input_size``).
    Deviations: ``crop_mode="border"`` is treated as ``squash``, and networks with a rectangular input squash the
    image (both are the same for images of the input's aspect ratio).
    """

    name = "timm"
    summary = "timm models in hub layout: config.json with an architecture, and safetensors"
    preload = {  # noqa: RUF012
        Access.WEIGHTS: ("numpy", "safetensors"),
        Access.QUERIES: _LIBRARIES,
        Access.GRADIENTS: _LIBRARIES,
    }

    def claim(self, listing: Listing, read: Read) -> Iterator[Artifact | Skipped]:
        """See ``Adapter.claim``. Whether timm knows the architecture is found out when it is opened."""
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

    def _load(self, artifact: Artifact, options: LoadOptions) -> TorchModel:
        """See ``Adapter.load``."""
        return self._load_white(artifact, options)

    def _load_white(self, artifact: Artifact, options: LoadOptions) -> TorchModel:
        """See ``Adapter.load_white``.

        Raises:
            UnsafeModel: the configuration steers timm's loading.
            UnsupportedModel: the installed timm has no such architecture.
            CorruptModel: the configuration and the tensors do not fit each other.
        """
        from fp_audit_adapters._torch import TorchModel, limit_threads, overruled

        limit_threads(options)
        config = read_json(local_read(artifact.path), CONFIG)
        pretrained, arguments = parse(config)
        network = _build(config["architecture"], pretrained, arguments, read_tensors(safetensors_paths(artifact)))
        preprocess = overruled(to_preprocess(pretrained), options.preprocess)
        height, width = preprocess.crop or preprocess.resize or (None, None)
        return TorchModel(
            network,
            preprocess=preprocess,
            spec=InputSpec(_input_size(pretrained)[0], height, width),
            classes=_classes(pretrained),
            adapter=self.name,
            recipe={"label_names": pretrained.get("label_names")},
            device=options.device,
        )

    def _save(self, model: WhiteBox, folder: Path) -> None:
        """See ``Adapter.save``: loads again here and with timm's ``local-dir:``.

        Raises:
            UsageError: the model is not this adapter's, or its preprocessing swaps colours: unknown to timm.
        """
        from timm.models import save_for_hf

        from fp_audit_adapters._torch import TorchModel

        if not isinstance(model, TorchModel) or model.adapter != self.name:
            raise UsageError("only a model that the timm adapter opened can be saved by it")
        labels = model.recipe["label_names"]
        save_for_hf(
            model.network,
            str(folder),
            model_config={"label_names": labels} if labels else None,
            safe_serialization=True,
            data_config=to_data_config(model.preprocess, model.spec),
        )


def _claim(listing: Listing, folder: Folder, target: str, read: Read) -> Artifact | None:
    """Claim one folder with a ``config.json``; None where it is not timm's."""
    try:
        config = read_json(read, folder.inside(CONFIG))
    except CorruptModel:
        return None  # nobody's, and reported by the huggingface adapter
    if "architecture" not in config or "pretrained_cfg" not in config:
        return None
    parse(config)
    return Artifact(
        target=target,
        adapter=TimmAdapter.name,
        files=(folder.files[CONFIG], *weight_files(folder, read)),
        entry=folder.path,
        root=listing.root,
        revision=listing.revision,
        listing=listing.target,
    )


def parse(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a configuration into ``pretrained_cfg`` and model arguments, with timm's precedence, without sources.

    Raises:
        UnsafeModel: an argument steers loading instead of describing layers.
        CorruptModel: a part is missing or of the wrong type.
    """
    pretrained, arguments = config.get("pretrained_cfg"), config.get("model_args") or {}
    name = config.get("architecture")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", name):
        raise CorruptModel(f"{CONFIG} says architecture {str(name)[:80]!r}: a name of timm's registry was expected")
    if not isinstance(pretrained, dict) or not isinstance(arguments, dict):
        raise CorruptModel(f"{CONFIG} needs objects for pretrained_cfg and model_args")
    steering = sorted(key for key in arguments if _STEERING.fullmatch(key))
    if steering:
        raise UnsafeModel(f"{CONFIG} steers loading through model_args ({steering[0]}): never followed")
    pretrained = {key: value for key, value in pretrained.items() if key not in _SOURCES}
    pretrained |= {key: config[key] for key in ("num_classes", "label_names") if config.get(key) is not None}
    for key in ("num_classes", "in_chans", "img_size"):
        if arguments.get(key) is not None:
            pretrained[key] = arguments[key]
    channels, height, width = _input_size(pretrained)
    pretrained["input_size"] = (channels, height, width)
    return pretrained, dict(arguments)


def _input_size(pretrained: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return channels, height and width of the input; saved model arguments overrule the metadata."""
    size = list(pretrained.get("input_size") or (3, 224, 224))
    if pretrained.get("in_chans") is not None:
        size[:1] = [pretrained["in_chans"]]
    asked = pretrained.get("img_size")
    if asked is not None and pretrained.get("fixed_input_size"):
        size[1:] = [asked, asked] if isinstance(asked, int) else asked
    if len(size) != 3 or not all(isinstance(side, int) and 1 <= side <= MAX_SIZE for side in size):
        raise CorruptModel(f"{CONFIG} says input_size {str(size)[:80]}: channels, height and width were expected")
    return size[0], size[1], size[2]


def to_preprocess(pretrained: Mapping[str, Any]) -> Preprocess:
    """Turn a parsed ``pretrained_cfg`` into timm's transform for evaluation.

    Raises:
        CorruptModel: a value makes no sense.
    """
    channels, height, width = _input_size(pretrained)
    fraction = pretrained.get("crop_pct") or 0.875
    name: Any = pretrained.get("interpolation") or "bicubic"
    if not isinstance(fraction, int | float) or not 0.05 <= fraction <= 2 or name not in get_args(Filter):
        raise CorruptModel(f"{CONFIG} says crop_pct {fraction!r:.40}, interpolation {name!r:.40}: neither is known")
    scaled = (math.floor(height / fraction), math.floor(width / fraction))
    squash = pretrained.get("crop_mode") in ("squash", "border") or scaled[0] != scaled[1]
    return Preprocess(
        resize=scaled if squash else None,
        shortest_edge=None if squash else scaled[0],
        crop=(height, width),
        crop_rounding="even",
        filter=name,
        mean=_per_channel("mean", pretrained.get("mean") or IMAGENET_MEAN, channels),
        std=_per_channel("std", pretrained.get("std") or IMAGENET_STD, channels),
    )


def _per_channel(name: str, value: Any, channels: int) -> tuple[float, ...]:  # noqa: ANN401
    """Read a mean or deviation; timm replaces one of the wrong length by its average."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise CorruptModel(f"{CONFIG} says {name} {str(value)[:80]}: numbers were expected")
    if name == "std" and not all(numbers):
        raise CorruptModel(f"{CONFIG} says std {str(value)[:80]}: a deviation of 0 cannot be divided by")
    if len(numbers) not in (1, channels):
        numbers = [sum(numbers) / len(numbers)]
    return tuple(float(number) for number in numbers)


def to_data_config(preprocess: Preprocess, spec: InputSpec) -> dict[str, Any]:
    """Return timm's words for ``preprocess``, as far as timm has them; the inverse of ``to_preprocess``.

    Raises:
        UsageError: it swaps red and blue.
    """
    if preprocess.bgr:
        raise UsageError("timm has no preprocessing that swaps red and blue")
    data: dict[str, Any] = {
        "interpolation": preprocess.filter,
        "mean": tuple(m / preprocess.scale for m in preprocess.mean),
        "std": tuple(s / preprocess.scale for s in preprocess.std),
    }
    side = preprocess.crop or preprocess.resize
    if side is not None:
        height = preprocess.resize[0] if preprocess.resize else preprocess.shortest_edge or side[0]
        data |= {
            "input_size": (spec.channels, *side),
            "crop_pct": _fraction(side[0], height),
            "crop_mode": "squash" if preprocess.resize else "center",
        }
    return data


def _fraction(crop: int, resized: int) -> float:
    """Return the fraction f for which floor(crop / f) is ``resized``."""
    return crop / resized if math.floor(crop / (crop / resized)) == resized else crop / (resized + 0.5)


def _build(
    name: str,
    pretrained: Mapping[str, Any],
    arguments: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
) -> nn.Module:
    """Build the network and fill it with ``tensors``."""
    import timm
    import torch
    from timm.models import PretrainedCfg

    from fp_audit_adapters._torch import BUILD_ERRORS, Uninitialised, check_size

    name = name.partition(".")[0]
    if not timm.is_model(name):
        raise UnsupportedModel(f"timm {timm.__version__} has no architecture {name[:80]!r}")
    if not tensors:
        raise CorruptModel("the weights hold no tensor")
    check_plausible({**pretrained, **arguments}, tensors)
    own = {field.name for field in fields(PretrainedCfg)} - {"architecture"}
    known = {key: value for key, value in pretrained.items() if key in own and value is not None}
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    try:
        with torch.device("meta"), Uninitialised():
            skeleton = timm.create_model(name, pretrained_cfg=known, **arguments)
        check_size(skeleton, tensors)
        if skeleton.state_dict().keys() == state.keys():
            with Uninitialised():
                network = timm.create_model(name, pretrained_cfg=known, **arguments)
            network.load_state_dict(state)
        else:  # an older layout: timm renames it on the way
            network = timm.create_model(
                name, pretrained=True, pretrained_cfg={**known, "state_dict": state}, **arguments
            )
            network.pretrained_cfg.pop("state_dict", None)
    except BUILD_ERRORS as error:
        raise CorruptModel(f"the weights are not those of the {name} in {CONFIG}: {one_line(error)}") from error
    filled: nn.Module = network
    return filled


def _classes(pretrained: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes in output order, where every output has one."""
    names, count = pretrained.get("label_names"), pretrained.get("num_classes")
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or len(names) != count or None in names:
        return None
    return tuple(str(name) for name in names)
