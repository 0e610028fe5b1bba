"""Any safetensors, whatever they are the weights of: language models, adapters, parts of pipelines. Read, never run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NoReturn

from numpy.typing import NDArray

from fp_audit.errors import CorruptModel, TargetError, UnsupportedModel
from fp_audit.model import Adapter, BlackBox, LoadOptions, Read, Unprepared, WhiteBox, target_of
from fp_audit.types import Access, Artifact, File, Listing, Skipped
from fp_audit_adapters._files import (
    INDEX,
    WEIGHTS,
    Folder,
    folders,
    read_json,
    read_tensors,
    remote_code,
    safetensors_paths,
    weight_files,
)
from fp_audit_adapters._quantised import dequantised

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
UNRUN = "no adapter knows how to run it"

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")


class SafetensorsAdapter(Adapter):
    """Claims the safetensors that no other adapter opens, for hashes and weights alone.

    A folder with ``model.safetensors`` or its index is one model; so are the shards of one name, and any other file
    alone, such as ``adapter_model.safetensors``. Layers that bitsandbytes or GPTQ quantised are dequantised
    (``_quantised``). A folder whose ``config.json`` is broken or names code is left to those who say so.
    """

    name: ClassVar[str] = "safetensors"
    summary: ClassVar[str] = "the tensors of any other safetensors (language models, LoRA adapters, ...): weights only"
    preload: ClassVar[Mapping[Access, tuple[str, ...]]] = dict.fromkeys(Access, ("numpy", "safetensors"))
    gives: ClassVar[frozenset[Access]] = frozenset({Access.IDENTITY, Access.WEIGHTS})
    fallback: ClassVar[bool] = True

    def claim(self, listing: Listing, read: Read) -> Iterator[Artifact | Skipped]:
        """See ``Adapter.claim``. What is wrong with a folder is for the other adapters to say."""
        for folder in folders(listing):
            if _sound(folder, read):
                yield from _claim(listing, folder, read)

    def tensors(self, artifact: Artifact) -> dict[str, NDArray[Any]]:
        """See ``Adapter.tensors``."""
        return dequantised(read_tensors(safetensors_paths(artifact)))

    def _load(self, artifact: Artifact, options: LoadOptions) -> BlackBox | Unprepared:
        """See ``Adapter.load``: only the weights are known."""
        del options
        _unrun(artifact)

    def _load_white(self, artifact: Artifact, options: LoadOptions) -> WhiteBox:
        """See ``Adapter.load_white``: only the weights are known."""
        del options
        _unrun(artifact)

    def _save(self, model: WhiteBox, folder: Path) -> None:
        """See ``Adapter.save``: nothing is ever opened."""
        raise UnsupportedModel(f"{folder}: only a model that was opened can be saved")


def _unrun(artifact: Artifact) -> NoReturn:
    raise UnsupportedModel(f"{artifact.target} can only be compared by its weights: {artifact.unrun or UNRUN}")


def _sound(folder: Folder, read: Read) -> bool:
    """Tell whether the configuration, if there is one, can be read and names no code."""
    if CONFIG not in folder.files:
        return True
    try:
        return remote_code(read_json(read, folder.inside(CONFIG))) is None
    except CorruptModel:
        return False


def _claim(listing: Listing, folder: Folder, read: Read) -> Iterator[Artifact]:
    models = dict(_models(folder, read))
    single = len(models) == 1
    for name, files in models.items():
        whole = name in (WEIGHTS, INDEX) or (single and bool(folder.files.keys() & {CONFIG, ADAPTER_CONFIG}))
        entry = folder.path if whole else folder.inside(name)
        target = listing.target if listing.files == files else target_of(listing, entry, alone=single)
        yield Artifact(
            target=target,
            adapter=SafetensorsAdapter.name,
            files=files,
            entry=entry,
            root=listing.root,
            revision=listing.revision,
            listing=listing.target,
            unrun=UNRUN,
        )


def _models(folder: Folder, read: Read) -> Iterator[tuple[str, tuple[File, ...]]]:
    """Group the safetensors of a folder: the name of the first file of a model -> its files."""
    rest = {name: file for name, file in sorted(folder.files.items()) if name.endswith(".safetensors")}
    if WEIGHTS in folder.files or INDEX in folder.files:
        try:
            files = weight_files(folder, read)
        except TargetError:
            return
        yield PurePosixPath(files[0].path).name, files
        rest = {name: file for name, file in rest.items() if file not in files}
    shards: dict[str, list[File]] = {}
    for name, file in rest.items():
        match = _SHARD.fullmatch(name)
        shards.setdefault(match["stem"] if match else name, []).append(file)
    for group in shards.values():
        yield PurePosixPath(group[0].path).name, tuple(group)
