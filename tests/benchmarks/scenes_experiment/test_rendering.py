"""Scenes that are rendered once into a file."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.scenes_experiment import rendering
from hf_geossl import load_scenes


def test_the_file_holds_the_scenes_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rendering.render_scenes(tmp_path, "object", 16, 3, seed=1)
    images = rendering.RenderedScenes(file)
    expected = load_scenes("train", 16, 3, mode="object", seed=1)
    assert len(images) == 3
    for index in range(3):
        assert (images[index]["image"] == np.asarray(expected[index]["image"])).all()
    monkeypatch.setattr(rendering, "_render", None)
    assert rendering.render_scenes(tmp_path, "object", 16, 3, seed=1) == file


def test_what_a_killed_process_left_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rendering.render_scenes(tmp_path / "whole", "scene", 16, 3)
    render, calls = rendering._render, []

    def killed(*job: object) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(job)
        render(*job)  # type: ignore[arg-type]

    monkeypatch.setattr(rendering, "BLOCK", 2)
    monkeypatch.setattr(rendering, "_render", killed)
    with pytest.raises(KeyboardInterrupt):
        rendering.render_scenes(tmp_path, "scene", 16, 3)
    assert not list(tmp_path.glob("*.npy"))
    monkeypatch.setattr(rendering, "_render", render)
    again = rendering.render_scenes(tmp_path, "scene", 16, 3)
    assert again.read_bytes() == whole.read_bytes()
    assert [file.suffix for file in tmp_path.glob("scene-*")] == [".npy"]
