"""Files of a hub read in parts, and what headers say of tensors: real requests, real safetensors and ONNX files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from fp_audit import headers
from fp_audit.errors import CorruptModel, TargetError, UnavailableTarget
from fp_audit.headers import safetensors
from fp_audit.onnx_headers import onnx as onnx_layout
from fp_audit.sources import _client
from fp_audit.sources._base import SourceOptions
from fp_audit.sources._ranged import WHOLE, Allowance, RangedFile
from fp_audit.sources.hub import HubSource
from fp_audit.types import Artifact, Listing

if TYPE_CHECKING:
    from hub_server import HubServer

pytest_plugins = ("hub_server",)

CONTENT = np.random.default_rng(0).bytes(3 * WHOLE)


def local(content: bytes, requests: int = 100) -> RangedFile:
    return RangedFile(len(content), lambda begin, end: content[begin:end], Allowance(requests, 10**9))


def offered(hub: HubServer, **options: Any) -> tuple[HubSource, Artifact]:
    """Publish one large file, and forget the request that lists it."""
    (hub.folder / "org" / "m").mkdir(parents=True)
    (hub.folder / "org" / "m" / "model.onnx").write_bytes(CONTENT)
    source = HubSource(SourceOptions(**options))
    (listing,) = source.listings("org/m")
    assert isinstance(listing, Listing)
    hub.forget()
    return source, Artifact("org/m", "onnx", listing.files, "model.onnx", None, listing.revision, "org/m")


class TestRequests:
    def test_a_part_is_one_request_and_known_bytes_are_none(self, hub: HubServer) -> None:
        source, artifact = offered(hub)
        file = (source.parts(artifact) or {})["model.onnx"]
        assert file.read(100, 200, ahead=1000) == CONTENT[100:200]
        assert file.read(150, 1100) == CONTENT[150:1100]
        assert len(hub.requests) == 1
        assert file.read(1000, 2000) == CONTENT[1000:2000]
        assert hub.bytes_sent == 1900
        assert (len(hub.requests), file.fetched) == (2, 1900)
        assert (source.spent(artifact).requests, source.spent(artifact).bytes) == (3, 1900)
        assert file.holds(1000, 2000)
        assert not file.holds(99, 200)

    def test_where_a_redirect_led_is_remembered(self, hub: HubServer) -> None:
        hub.redirects = True
        source, artifact = offered(hub)
        file = (source.parts(artifact) or {})["model.onnx"]
        assert file.read(0, 10) + file.read(90, 100) == CONTENT[:10] + CONTENT[90:100]
        assert [request.split("/")[1] for request in hub.requests] == ["org", "lfs", "lfs"]
        assert source.spent(artifact).requests == 1 + len(hub.requests)

    def test_a_gated_file_needs_the_token(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        source, artifact = offered(hub)
        (hub.folder / "org" / "m" / ".gated").touch()
        with pytest.raises(UnavailableTarget, match="gated, needs access"):
            (source.parts(artifact) or {})["model.onnx"].read(0, 10)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert (source.parts(artifact) or {})["model.onnx"].read(0, 10) == CONTENT[:10]

    def test_a_passing_failure_is_tried_again(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_client, "PAUSES", (0.0,))
        source, artifact = offered(hub)
        hub.fail("resolve", 503, times=1)
        assert (source.parts(artifact) or {})["model.onnx"].read(0, 10) == CONTENT[:10]
        assert source.spent(artifact).requests == 3

    def test_another_content_than_was_asked_for_is_refused(self, hub: HubServer) -> None:
        """As from a server that sends the whole file whatever it is asked."""
        source, artifact = offered(hub)
        part = _client.Part("org/m", "model.onnx", str(artifact.revision), len(CONTENT) + 1, source.spent(artifact))
        with pytest.raises(UnavailableTarget, match="others came"):
            part.read(0, 10)
        assert hub.bytes_sent == 10

    def test_no_more_than_is_allowed(self, hub: HubServer) -> None:
        source, artifact = offered(hub, max_bytes=500)
        file = (source.parts(artifact) or {})["model.onnx"]
        file.read(0, 400)
        with pytest.raises(UnavailableTarget, match="more than a download"):
            file.read(400, 501)
        assert hub.bytes_sent == 400
        few = RangedFile(10, lambda begin, end: bytes(end - begin), Allowance(1, 10**6))
        few.read(0, 1)
        with pytest.raises(UnavailableTarget, match="more than a download"):
            few.read(5, 6)

    def test_what_is_small_or_here_is_not_read_in_parts(self, hub: HubServer) -> None:
        source, artifact = offered(hub)
        assert HubSource(SourceOptions(offline=True)).parts(artifact) is None
        source.fetch(artifact)
        assert source.parts(artifact) is None
        (hub.folder / "org" / "m" / "model.onnx").write_bytes(bytes(WHOLE))
        (listing,) = source.listings("org/m")
        assert isinstance(listing, Listing)
        small = Artifact("org/m", "onnx", listing.files, "model.onnx", None, listing.revision, "org/m")
        assert source.parts(small) is None


TENSORS = {
    "b": np.arange(60, dtype=np.float32).reshape(6, 10),
    "a": np.arange(24, dtype=np.float16).reshape(8, 3),
    "n": np.array(3, np.int64),
}


class TestSafetensors:
    def test_places_and_values_are_the_library_s(self) -> None:
        layout = safetensors(local(save(TENSORS, {"format": "pt"})))
        assert layout.complete
        by_shape = {place.shape: place for place in layout.places}
        np.testing.assert_array_equal(by_shape[6, 10].rows(2), TENSORS["b"][:2])
        np.testing.assert_array_equal(by_shape[8, 3].rows(8), TENSORS["a"])
        assert by_shape[()].row_bytes == 0

    def test_bfloat16(self) -> None:
        import torch
        from safetensors.torch import save as save_torch

        values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        (place,) = safetensors(local(save_torch({"w": values.bfloat16()}))).places
        np.testing.assert_array_equal(place.rows(5), values.bfloat16().float().numpy())

    def test_a_long_header_takes_a_second_request(self) -> None:
        content = save({f"tensor {i:050}": np.zeros(2, np.float32) for i in range(1500)})
        assert int.from_bytes(content[:8], "little") > headers.FIRST
        assert len(safetensors(local(content, requests=2)).places) == 1500

    def test_packed_weights_are_not_taken_for_all_there_is(self) -> None:
        assert not safetensors(local(save({**TENSORS, "qweight": np.zeros((9, 9), np.int32)}))).complete

    @pytest.mark.parametrize(
        ("entries", "body"),
        [
            ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 9),
            ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 7),
            ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8),
            ({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, 8),
            ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, 8),
            ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, 8),
            ({"a": {"dtype": "F32", "shape": [1] * 33 + [2], "data_offsets": [0, 8]}}, 8),
            ({"a": {"dtype": "Q7", "shape": [8], "data_offsets": [0, 8]}}, 8),
            ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, 16),
            (
                {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"},
                8,
            ),
            ({"a": {"dtype": "F32", "shape": [2]}}, 8),
            ({"a": "text"}, 8),
            ([], 0),
        ],
    )
    def test_a_header_that_does_not_fit_its_file(self, entries: Any, body: int) -> None:
        head = json.dumps(entries).encode()
        with pytest.raises(CorruptModel):
            safetensors(local(len(head).to_bytes(8, "little") + head + bytes(body)))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"short",
            b"\xff" * 100,
            (2**40).to_bytes(8, "little") + b"{}",
            (9).to_bytes(8, "little") + b'{"a":1,"a"',
            (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
            (200_000).to_bytes(8, "little") + b"[" * 200_000,
            (19).to_bytes(8, "little") + b'{"a": {}, "a": {} }',
        ],
    )
    def test_what_is_no_header(self, content: bytes) -> None:
        with pytest.raises(CorruptModel):
            safetensors(local(content))


def graph_of(tensors: list[TensorProto], nodes: list[Any] | None = None, **more: Any) -> Any:
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"], name=f"node {i}") for i in range(50)]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors), **more)


W = np.random.default_rng(1).normal(size=(40, 30)).astype(np.float32)


class TestOnnx:
    def read(self, model: Any, **beside: bytes) -> Any:
        files = {"m.onnx": local(model.SerializeToString())}
        files |= {name.replace("_", "."): local(content) for name, content in beside.items()}
        return onnx_layout("m.onnx", files)

    def test_places_and_values_are_the_library_s(self) -> None:
        stored = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(W.astype(np.float16)[:9], "h")]
        layout = self.read(graph_of(stored))
        assert layout.complete
        assert [(place.shape, place.dtype) for place in layout.places] == [((40, 30), "F32"), ((9, 30), "F16")]
        np.testing.assert_array_equal(layout.places[0].rows(7), W[:7])
        np.testing.assert_array_equal(layout.places[1].rows(9), W.astype(np.float16)[:9])

    def test_large_tensors_are_stepped_over(self) -> None:
        stored = [numpy_helper.from_array(np.zeros((1000, 300 + i), np.float32), str(i)) for i in range(5)]
        content = graph_of(stored).SerializeToString()
        file = local(content)
        layout = onnx_layout("m.onnx", {"m.onnx": file})
        assert [place.shape for place in layout.places] == [(1000, 300 + i) for i in range(5)]
        assert file.fetched < len(content) / 10

    def test_external_data(self, tmp_path: Path) -> None:
        model = graph_of([numpy_helper.from_array(W, "v"), numpy_helper.from_array(W + 1, "w")])
        onnx.save_model(
            model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0
        )
        files = {name: local((tmp_path / name).read_bytes()) for name in ("m.onnx", "m.data")}
        layout = onnx_layout("m.onnx", files)
        np.testing.assert_array_equal(layout.places[1].rows(5), W[:5] + 1)
        assert onnx_layout("m.onnx", {"m.onnx": files["m.onnx"]}).places[1].file is None

    def test_constants_are_weights_too(self) -> None:
        node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W))
        layout = self.read(graph_of([], [node]))
        np.testing.assert_array_equal(layout.places[0].rows(3), W[:3])

    def test_quantised_tensors_are_seen_and_not_read(self) -> None:
        (place,) = self.read(graph_of([numpy_helper.from_array(W.astype(np.int8), "q")])).places
        assert place.shape == W.shape
        assert place.row_bytes == 0

    def test_weights_that_hide_in_branches_or_functions(self) -> None:
        branch = helper.make_graph([], "b", [], [], [numpy_helper.from_array(W, "w")])
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        assert not self.read(graph_of([], [node])).complete
        function = helper.make_function("f", "f", [], [], [], [helper.make_opsetid("", 18)])
        assert not self.read(graph_of([], functions=[function])).complete
        sparse = graph_of([])
        sparse.graph.sparse_initializer.add()
        assert not self.read(sparse).complete

    def test_cut_and_changed_files_are_read_or_refused(self) -> None:
        content = graph_of([numpy_helper.from_array(W[:6, :4], "w")]).SerializeToString()
        rng, refused = np.random.default_rng(2), 0
        for number in range(600):
            changed = bytearray(content[: rng.integers(len(content))] if number % 2 else content)
            if changed:
                changed[rng.integers(len(changed))] ^= int(rng.integers(1, 256))
            try:
                for place in onnx_layout("m.onnx", {"m.onnx": local(bytes(changed))}).places:
                    if place.row_bytes and place.shape[0]:
                        assert len(place.rows(1)) == 1
            except TargetError:
                refused += 1
        assert refused > 100

    def test_data_outside_of_the_file_are_no_data(self) -> None:
        place = TensorProto(dims=[6, 4], data_type=1, data_location=1)
        for key, value in {"location": "m.data", "offset": "10"}.items():
            place.external_data.add(key=key, value=value)
        assert self.read(graph_of([place]), m_data=bytes(100)).places[0].file is None
        assert self.read(graph_of([place]), m_data=bytes(106)).places[0].file is not None
        short = TensorProto(dims=[6, 4], data_type=1, raw_data=bytes(95))
        (found,) = self.read(graph_of([short])).places
        assert found.file is None
