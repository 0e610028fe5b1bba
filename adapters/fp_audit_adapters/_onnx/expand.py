"""Rewrites a model until it consists of operators that the executor has, or says which ones it lacks."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import onnx.inliner
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit_adapters._onnx.graph import all_nodes, opset_of
from fp_audit_adapters._onnx.ops import find


def expanded(model: ModelProto) -> ModelProto:
    """The model without local functions, and without unknown operators whose schema is a function."""
    if model.functions:
        model = _inlined(onnx.inliner.inline_local_functions, model)
    unknown = _unknown_operators(model)
    composed = [key for key in unknown if _has_body(*key, opset_of(model))]
    if composed:
        expand = partial(onnx.inliner.inline_selected_functions, function_ids=composed, inline_schema_functions=True)
        with suppress(CorruptModel):  # onnx expands some operators only where it can infer all types.
            model = _inlined(expand, model)
        unknown = _unknown_operators(model)
    if unknown:
        names = sorted(f"{domain}.{name}" if domain else name for domain, name in unknown)
        raise UnsupportedModel(f"the torch executor has no operator {', '.join(names)}")
    return model


def _inlined(inline: Callable[[ModelProto], ModelProto], model: ModelProto) -> ModelProto:
    try:
        return inline(model)
    except (EncodeError, ValueError) as error:
        raise UnsupportedModel("functions in a model above 2 GB: not supported; inline them first") from error
    except RuntimeError as error:
        raise CorruptModel(f"its functions cannot be inlined: {' '.join(str(error).split())[:300]}") from error


def _unknown_operators(model: ModelProto) -> list[tuple[str, str]]:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    versions[""] = versions["ai.onnx"] = opset_of(model)
    unknown = {
        (node.domain, node.op_type)
        for node in all_nodes(model)
        if node.op_type != "Constant" and find(node.domain, node.op_type, versions.get(node.domain, 1)) is None
    }
    return sorted(unknown)


def _has_body(domain: str, name: str, opset: int) -> bool:
    if not onnx.defs.has(name, domain):
        return False
    try:
        schema = onnx.defs.get_schema(name, opset, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
