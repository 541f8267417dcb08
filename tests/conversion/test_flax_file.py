"""Flax's checkpoints are read in any encoding that Flax writes; damaged and hostile ones are refused in one sentence."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch

from hf_geossl.conversion import convert_loca_checkpoint
from hf_geossl.conversion.flax_file import FlaxFile
from tests.helpers.flax_files import (
    Tree,
    check_model,
    flax_array,
    flax_bytes,
    flax_file,
    flax_tree,
    nested,
    pack,
    triple,
    write_flax,
)


def _chunked(values: torch.Tensor, size: int, form: str) -> Tree:
    chunks: Any = [flax_array(part) for part in values.reshape(-1).split(size)]
    shape: Any = list(values.shape)
    if form != "list":  # as flax writes them, whose maps may come in the order of the text
        order = sorted if form == "sorted map" else reversed if form == "reversed map" else list
        keys = list(order([str(index) for index in range(len(chunks))]))
        chunks = {key: chunks[int(key)] for key in keys}
        shape = {str(index): length for index, length in enumerate(shape)}
    marker = {"__msgpack_chunked_array__": True}
    parts = {"shape": shape, "chunks": chunks}
    return {**parts, **marker} if form == "reversed map" else {**marker, **parts}


@pytest.mark.parametrize("form", ["list", "map", "sorted map", "reversed map"])
def test_chunked_arrays(form: str, tmp_path: Path) -> None:
    flat = flax_tree(0)
    change = {
        key: _chunked(flat[key], 20, form) for key in ("position_predictor/kernel", "encoderblock_0/LayerNorm_0/bias")
    }
    key = "ToTokenSequence_0/embedding/kernel"  # 48 chunks: "10" comes before "2" in the order of the text
    change[key] = _chunked(flat[key], 20, form)
    check_model(convert_loca_checkpoint(flax_file(tmp_path / "chunked", change)), flat, flax_tree(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("way", ["array", "scalar", "chunked"])
def test_dtypes_become_float32(dtype: torch.dtype, way: str, tmp_path: Path) -> None:
    encode: dict[str, Callable[[torch.Tensor], Any]] = {
        "array": lambda values: flax_array(values),
        "scalar": lambda values: flax_array(values, code=3),
        "chunked": lambda values: _chunked(values, 7, "map"),
    }
    flat = {key: value.to(dtype) for key, value in flax_tree(0).items()}
    model = convert_loca_checkpoint(
        flax_file(tmp_path / "file", {key: encode[way](value) for key, value in flat.items()})
    )
    check_model(model, {key: value.float() for key, value in flat.items()}, flax_tree(1))


@pytest.mark.parametrize("old", [False, True])
def test_names_and_bytes_as_old_and_new_msgpack_write_them(old: bool, tmp_path: Path) -> None:
    """Flax decodes the triple with raw=True: the dtype may be bytes, and the content text."""
    flat = flax_tree(0)
    change: dict[str, Any] = {}
    for key, value in flat.items():
        shape, dtype, content = triple(value)
        packed = msgpack.packb((shape, dtype, content), use_bin_type=False)
        change[key] = msgpack.ExtType(1, packed if old else msgpack.packb((shape, dtype.encode(), content)))
    check_model(convert_loca_checkpoint(flax_file(tmp_path / "file", change)), flat, flax_tree(1))


def test_other_values_and_any_order_at_the_top_are_tolerated(tmp_path: Path) -> None:
    params, ema_params = nested(flax_tree(0)), nested(flax_tree(1))
    number = msgpack.ExtType(2, msgpack.packb((1.0, -2.0)))
    others = {
        "opt_state": {"0": {"mu": params, "nu": {}}, "1": [], "count": flax_array(torch.tensor(3, dtype=torch.int32))},
        "state": None,
        "rng": msgpack.ExtType(1, msgpack.packb(([2], "uint32", b"12345678"))),
        "metadata": {"chrono": {"time": 1.5, "seen": 2**40, "negative": -(2**40), "done": True, "z": number}},
        "strange": {
            1: "integer",
            b"raw": 2.5,
            "when": msgpack.Timestamp.from_datetime(datetime(2024, 1, 1, tzinfo=UTC)),
        },
        "object": msgpack.ExtType(1, msgpack.packb(([1], "object", b"12345678"))),
        "many": list(range(70_000)),
        "text": ["x" * length for length in (31, 32, 255, 256, 70_000)],
        "extensions": [msgpack.ExtType(9, b"x" * length) for length in (1, 2, 3, 4, 8, 16, 17, 300, 70_000)],
        "wide": {str(index): index / 3 for index in range(70_000)},
    }
    orders = [
        {**others, "ema_params": ema_params, "params": params},
        {"params": params, **others, "ema_params": ema_params},
        {"ema_params": ema_params, "params": params},
    ]
    for content in orders:
        model = convert_loca_checkpoint(write_flax(tmp_path / "file", **content))
        check_model(model, flax_tree(0), flax_tree(1))


def test_a_map_of_nothing_in_a_tree_is_nothing(tmp_path: Path) -> None:
    check_model(convert_loca_checkpoint(flax_file(tmp_path / "file", {"dropout": {}})), flax_tree(0), flax_tree(1))


def _ext(*triple: Any, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(triple if len(triple) != 1 else triple[0]))


_FOUR = b"\0" * 16


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (_ext([4], "float32", b"\0" * 15), "expected shape, dtype and bytes"),
        (_ext([4], "float64", _FOUR), "its 2 values do not fill its shape"),
        (_ext([2**40, 2**40], "float32", _FOUR), "its 4 values do not fill its shape"),
        (_ext([2**63] * 30, "float32", _FOUR), "its 4 values do not fill its shape"),
        (_ext([1] * 2000, "float32", _FOUR), "up to 32 dimensions"),
        (_ext([1] * 33, "float32", b"1234"), "up to 32 dimensions"),
        (_ext([0, 2**60], "float32", b""), "expected up to 32 positive integers"),
        (_ext([-2, -2], "float32", _FOUR), "expected up to 32 positive integers as shape"),
        (_ext([4.0], "float32", _FOUR), "expected up to 32 positive integers"),
        (_ext([True], "float32", b"\0" * 4), "expected up to 32 positive integers"),
        (_ext(["4"], "float32", _FOUR), "expected up to 32 positive integers"),
        (_ext(4, "float32", _FOUR), "in params/a/b"),
        (_ext([4], "object", _FOUR), "dtype 'object', expected one of bfloat16, float16"),
        (_ext([4], "int32", _FOUR), "dtype 'int32'"),
        (_ext([2], "complex64", _FOUR), "dtype 'complex64'"),
        (_ext([4], "O" * 500, _FOUR), "dtype 'O{40}', "),
        (_ext([4], ["float32"], _FOUR), "a map or list stands where a single value belongs"),
        (_ext([4], 3, _FOUR), "dtype 'int'"),
        (_ext([4], b"\xff\n", _FOUR), r"dtype 'ÿ\\n'"),
        (_ext([4], "float32", [0, 0, 0, 0]), "a map or list stands where a single value belongs"),
        (_ext([4], "float32", 3), "expected shape, dtype and bytes"),
        (_ext([4], "float32"), "dtype and bytes of an array"),
        (_ext([[4]], "float32", _FOUR), "a map or list stands where a single value belongs"),
        (_ext({}), "in params/a/b"),
        (msgpack.ExtType(1, b""), "in params/a/b"),
        (msgpack.ExtType(1, msgpack.packb(([4], "float32", _FOUR)) + b"x"), "expected shape, dtype and bytes"),
        (msgpack.ExtType(1, msgpack.packb(([4], "float32", _FOUR))[:-1]), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93\x91\x04\xc1"), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93" + b"\x91" * 200), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93" + b"\x91" * 100_000), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93\xdd\x3f\xff\xff\xff"), "up to 32 dimensions"),
        (msgpack.ExtType(1, b"\x93\x91\x04\xdd\x3f\xff\xff\xff"), "exceeds max_array_len"),
        (msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), "extension type 2, expected an array"),
        (msgpack.ExtType(5, b"x"), "extension type 5, expected an array"),
        (3.5, "float, expected an array"),
        (3, "int, expected an array"),
        (None, "NoneType, expected an array"),
        ("text", "str, expected an array"),
        (b"raw", "bytes, expected an array"),
        ([1], "in params/a/b/0: int, expected an array"),
        ({1: _ext([1], "float32", b"1234")}, "a name that is no printable text of up to 256 characters"),
        ({"x" * 2000: 1}, "a name that is no printable text of up to 256 characters"),
        ({"__msgpack_chunked_array__": True, "shape": [4]}, "its 0 values do not fill its shape"),
        ({"__msgpack_chunked_array__": True, "chunks": []}, "its 0 values do not fill its shape"),
        (
            {"__msgpack_chunked_array__": True, "shape": [5], "chunks": [_ext([4], "float32", _FOUR)]},
            "its 4 values do not fill its shape",
        ),
        ({"__msgpack_chunked_array__": True, "shape": [2**62], "chunks": {}}, "its 0 values do not fill its shape"),
        (
            {"__msgpack_chunked_array__": True, "shape": [4], "chunks": {"0": _ext([4], "float32", b"1")}},
            "in params/a/b/chunks/0: expected shape, dtype and bytes",
        ),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2, "2": 2}, "chunks": []}, "do not fill its shape"),
        ({"__msgpack_chunked_array__": True, "shape": [4], "chunks": 3}, "its 0 values do not fill its shape"),
        ({"__msgpack_chunked_array__": True, "shape": [4], "chunks": [3]}, "expected arrays as chunks"),
        ({"__msgpack_chunked_array__": True, "shape": [2**63] * 9999, "chunks": []}, "expected up to 32 positive"),
        ({"__msgpack_chunked_array__": True, "shape": [True], "chunks": []}, "expected up to 32 positive integers"),
    ],
)
def test_damaged_arrays_are_refused_by_name(leaf: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_3"
    path.write_bytes(msgpack.packb({"ema_params": pack(nested(flax_tree(1))), "params": {"a": {"b": leaf}}}))
    with pytest.raises(ValueError, match=message) as caught:
        convert_loca_checkpoint(path)
    message = str(caught.value)
    assert message.startswith("checkpoint_3 is damaged or no Flax msgpack file, in params/a/b")
    assert str(tmp_path) not in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("nest", [lambda tree: [tree], lambda tree: {"": tree}, lambda tree: {"x": tree}])
def test_trees_that_nest_deep_are_refused(nest: Callable[[Any], Any], tmp_path: Path) -> None:
    deep: Any = flax_array(torch.zeros(1))
    for _ in range(400):  # less than the library's own limit
        deep = nest(deep)
    path = write_flax(tmp_path / "file", params=deep if isinstance(deep, dict) else {"a": deep}, ema_params={})
    with pytest.raises(ValueError, match="^file has over 20000 arrays, or paths of over 256 characters, in params$"):
        convert_loca_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "in the map at its top"),
        (b"version https://git-lfs.github.com/spec/v1\n", "in the map at its top"),
        (b"\x1f\x8b\x08\x00gzip", "in the map at its top"),
        (b"PK\x03\x04zip", "in the map at its top"),
        (b"\x80\x02}q\x00.", "it goes on after its end"),
        (msgpack.packb([1, 2]), "in the map at its top"),
        (msgpack.packb(None), "in the map at its top"),
        (b"\xc1", "in the map at its top"),
        (b"\x80\x80", "it goes on after its end"),
        (msgpack.packb({"params": {}}) + b"\n", "it goes on after its end"),
        (b"\x81\xa6params", "in params"),
        (b"\x91" * 100_000, "in the map at its top"),
        (b"\x81\xa1a" * 100_000, "in a: StackError"),
        (b"\x81\xa1a" + b"\x91" * 100_000, "in a: StackError"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "in a"),
        (b"\xdf\xff\xff\xff\xff", "in the map at its top: 4294967295 entries, expected up to 20000"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "in a"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "damaged"),
        (b"\xdb\xff\xff\xff\xff", "in the map at its top"),
        (b"\x81\xc4\x01a\xc0", "a name that is no printable text"),
        (b"\x81\xa2\xff\xfe\xc0", "can't decode byte 0xff"),
        (b"\x81\x92\xc0\xc0\xc0", "a map or list stands where a single value belongs"),
        (b"\x81\x81\xa1a\xc0\xc0", "a map or list stands where a single value belongs"),
        (b"\x81\xdd\x3f\xff\xff\xff", "exceeds max_array_len"),
        (
            b"\xde\x75\x30" + b"".join(b"\xa5%05d\xc0" % index for index in range(30_000)),
            "30000 entries, expected up to 20000",
        ),
    ],
)
def test_files_of_something_else_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some_file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        convert_loca_checkpoint(path)
    assert str(caught.value).startswith("some_file is damaged or no Flax msgpack file")
    assert str(tmp_path) not in str(caught.value)


def test_a_tree_of_countless_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_geossl.conversion.flax_file._MAXIMUM_ENTRIES", 5000)
    with pytest.raises(ValueError, match="^file has over 5000 arrays"):
        convert_loca_checkpoint(
            write_flax(tmp_path / "file", params=[flax_array(torch.zeros(1))] * 6000, ema_params={})
        )


def test_pytorch_files_folders_and_nothing_are_refused(tmp_path: Path) -> None:
    for new in (True, False):
        torch.save({"params": torch.zeros(3)}, tmp_path / "model.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="^model.pth is damaged or no Flax msgpack file"):
            convert_loca_checkpoint(tmp_path / "model.pth")
    (tmp_path / "checkpoint_9").mkdir()
    with pytest.raises(FileNotFoundError, match="^checkpoint_9 is a folder: give the path of the checkpoint file"):
        convert_loca_checkpoint(tmp_path / "checkpoint_9")
    with pytest.raises(FileNotFoundError, match="^nothing is no file: give the path of the checkpoint file"):
        convert_loca_checkpoint(tmp_path / "nothing")


def test_names_that_would_break_the_line_or_come_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in params: a name that is no printable text") as caught:
        convert_loca_checkpoint(flax_file(tmp_path / "file", {"a\nb\x1b[31m": torch.zeros(1)}))
    assert str(caught.value).isprintable()
    doubled = {"encoder_norm": {"scale": torch.zeros(12)}, "encoder_norm/scale": torch.zeros(12)}
    with pytest.raises(ValueError, match="in params/encoder_norm/scale: it is there twice"):
        convert_loca_checkpoint(write_flax(tmp_path / "file", params=doubled, ema_params={}))


def test_every_truncation_and_any_damage_is_refused_in_one_sentence(tmp_path: Path) -> None:
    small = {"params": {"a": {"kernel": torch.zeros(3, 2)}}, "ema_params": {"b": _chunked(torch.zeros(4), 3, "map")}}
    whole, path, generator = flax_bytes(**small), tmp_path / "broken", random.Random(0)
    damaged_files = [whole[:length] for length in range(len(whole))]
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 2, 10])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        damaged_files.append(bytes(damaged))
    for content in damaged_files:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^broken") as caught:  # undamaged it is no LOCA checkpoint either
            convert_loca_checkpoint(path)
        assert type(caught.value) is ValueError
        assert str(caught.value).isprintable()


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(flax_bytes(params={"a": torch.zeros(100_000)}))
    with FlaxFile(path) as file:
        array = file.tree("params")["a"]
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="file has become shorter while it was read"):
            file.read(array)
