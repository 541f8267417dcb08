"""Which files of a folder are published, and which of a repository publishing may take away."""

import json
from pathlib import Path

import pytest

from hf_geossl.hub.model_folder import code_of, folder_of, is_managed, model_files
from tests.helpers.methods import METHODS


def test_only_files_that_publishing_writes_are_taken_away() -> None:
    ours = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "features.png",
        "training_run.json",
        "modeling_vit.py",
    ]
    assert all(map(is_managed, ours))
    theirs = [
        "README.md",
        "handler.py",
        "model-1-of-2.safetensors",
        "pytorch_model.bin",
        "images/features.png",
        "__init__.py",
    ]
    assert not any(map(is_managed, theirs))


def test_code_of_the_folder_wins_and_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from .other import x\n    from .modeling_vit import y\n")
    with pytest.raises(ValueError, match="needs other.py, which is not there"):
        code_of(tmp_path, {"AutoModel": "own.Model"})
    (tmp_path / "other.py").write_text("")
    found = code_of(tmp_path, {"AutoModel": "own.Model"})
    assert (found["own.py"].parent, found["other.py"].parent) == (tmp_path, tmp_path)
    assert found["modeling_vit.py"].parent.name == "modeling"


def test_files_are_written_for_readers_and_nothing_else(tmp_path: Path) -> None:
    METHODS["gtsa"].model("Model").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/alice/m"}))
    (tmp_path / "optimizer.pt").write_bytes(b"private")
    with model_files(tmp_path, "user/m") as files:
        assert {name for name in files if not name.endswith(".py")} == {
            "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
        }  # fmt: skip
        published = json.loads(bytes(files["config.json"]))
    assert "_name_or_path" not in published
    assert set(published["auto_map"]) >= {"AutoConfig", "AutoModel", "AutoBackbone"}
    with model_files(tmp_path, "user/m", max_shard_size="20KB") as files:
        assert "model.safetensors.index.json" in files
    with (
        pytest.raises(ValueError, match="max_shard_size must be like '5GB'"),
        model_files(tmp_path, "user/m", max_shard_size="much"),
    ):
        pass


def test_a_model_is_written_for_the_while(tmp_path: Path) -> None:
    with folder_of(METHODS["gtsa"].model("ForPreTraining")) as folder:
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["GTSAModel"]
    assert not folder.exists()
    with folder_of(tmp_path) as folder:
        assert folder == tmp_path
