"""Files of foreign checkpoints never run code, and damaged ones are refused in one sentence."""

import argparse
import os
import pickle
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.conversion import convert_dino_checkpoint, convert_gtsa_checkpoint, convert_timm_checkpoint, read_source
from hf_geossl.conversion.checkpoint_file import read_torch_file
from tests.helpers.plain_vits import authors_state, save, vit_of

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class _Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _converters() -> list[Any]:
    return [convert_gtsa_checkpoint, convert_timm_checkpoint, convert_dino_checkpoint, read_source]


@pytest.mark.parametrize("convert", _converters())
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(convert: Any, zipped: bool, tmp_path: Path) -> None:
    created = tmp_path / "created"
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": authors_state(vit_of()), "args": _Touch(created)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"checkpoint.pth holds the object (posix|nt)\.mkdir, which could run code"):
        convert(path)
    assert not created.exists()
    path.write_bytes(pickle.dumps(_Touch(created)))
    with pytest.raises(ValueError, match="checkpoint.pth"):
        convert(path)
    assert not created.exists()
    os.rename(path, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        convert(tmp_path / "model.safetensors")
    assert not created.exists()
    torch.load(save({"args": _Touch(created)}, path), weights_only=False)
    assert created.exists(), "the attack works on a reader that runs what it reads"


def test_settings_beside_the_weights_are_read_as_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("omegaconf")
    package.Settings = type("Settings", (argparse.Namespace,), {"__module__": "omegaconf", "__setstate__": _never})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", package)
    weights = {"a": torch.arange(3.0)}
    settings = {"lr": np.float64(3), "curve": np.ones(2), "path": tmp_path, "cfg": package.Settings(lr=1)}
    content = {"model": weights, "args": argparse.Namespace(output_dir=tmp_path), **settings}
    read = read_torch_file(save(content, tmp_path / "checkpoint.pth"))
    assert torch.equal(read["model"]["a"], weights["a"])
    assert {type(read[name]).__name__ for name in settings} == {"_Setting"}
    with pytest.raises(ValueError, match=r"object posix\.mkdir, .*save it again with its state_dict alone"):
        read_torch_file(save(content | {"x": _Touch(tmp_path / "created")}, tmp_path / "checkpoint.pth"))
    assert not (tmp_path / "created").exists()


def _never(self: object, state: object) -> None:
    raise AssertionError("code of the object has run")


@pytest.mark.parametrize("convert", _converters())
def test_files_that_are_no_checkpoints(convert: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        convert(tmp_path / "missing.pth")
    whole = save({"model": vit_of().state_dict()}, tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "broken.pth"
    contents = {
        "text": b"hello world\n",
        "page": b"<!DOCTYPE html><html></html>",
        "json": b'{"model": 1}',
        "empty": b"",
        "picture": b"\xff\xd8\xff\xe0\x00\x10JFIF",
        "half": whole[: len(whole) // 2],
        "start": whole[:10],
        "pickle": pickle.dumps({"a": 1}),
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.pth is not a readable PyTorch checkpoint") as caught:
            convert(path)
        assert "weights_only" not in str(caught.value), "no advice to load it unsafely"
    for content in ([1, 2], torch.zeros(3)):
        with pytest.raises(ValueError, match="expected a mapping"):
            convert(save(content, path))


def test_damaged_bytes_never_give_another_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    content = {"model": {"a": torch.zeros(3)}, "args": argparse.Namespace(a=1)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 3, 20])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="broken.pth"):  # {"a"} alone is no ViT either
            convert_gtsa_checkpoint(path)
        refused += 1
    assert refused == 200
