"""Clips: scenes of a mode, and masks at their own size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_geossl.data import sample_scene
from hf_geossl.data.scenes import render
from hf_geossl.evaluation.clips import Clip
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import propagation
from hf_geossl.evaluation.protocols.propagation import PropagationSettings, measure_propagation
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.tiny_data import davis_folder

OPTIONS = EvaluationOptions(batch_size=16, bootstrap=50, cache_dir=None, progress=False)


def test_masks_are_compared_at_their_own_size(tmp_path: Path) -> None:
    data = EvaluationData(dataset=str(davis_folder(tmp_path)), test_split="val")
    result = measure_propagation(pixel_encoder(4), data, OPTIONS, PropagationSettings(side=128, top_k=1))
    assert result.details["floors"]["first_mask"]["j_mean"] == pytest.approx((12 / 20 + 8 / 24 + 4 / 28) / 3)
    assert result.metrics["j_mean"] > 0.9


@pytest.mark.parametrize("mode", [None, "topdown", "object"])
def test_clips_show_scenes_of_the_datas_mode(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    clips: list[Clip] = []
    propagate = propagation.propagate_masks

    def watch(encoder: Any, clip: Clip, *given: Any, **others: Any) -> Any:
        clips.append(clip)
        return propagate(encoder, clip, *given, **others)

    monkeypatch.setattr(propagation, "propagate_masks", watch)
    data = EvaluationData(size=32, limit=3, config_name=mode)
    result = measure_propagation(pixel_encoder(8), data, OPTIONS, PropagationSettings(frames=3, smallest_object=0))
    assert result.details["clips"] == 3
    for index, clip in enumerate(clips[::2]):  # each is given to the model and to its random twin
        scene = sample_scene("test", index, mode=mode or "scene")
        for frame, mask, t in zip(clip.frames, clip.masks, (0, 0.5, 1), strict=True):
            expected = render(scene, 64, t)
            np.testing.assert_array_equal(frame, expected.image)
            known = np.isin(expected.instance, clip.masks[0])
            np.testing.assert_array_equal(mask, np.where(known, expected.instance, 0))


def test_what_reading_does_to_frames_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = davis_folder(tmp_path / "davis")
    frames = sorted((folder / "JPEGImages/480p/swimmer").iterdir())
    for path in frames[1:3]:
        with Image.open(path) as frame:
            clear = frame.convert("RGBA")
        clear.putalpha(100)
        clear.save(path)
    Image.new("RGB", (32, 48)).save(frames[3])
    data, settings = EvaluationData(dataset=str(folder), test_split="val"), PropagationSettings(side=64, top_k=1)
    measure_propagation(pixel_encoder(8), data, OPTIONS, settings)
    assert [record.getMessage() for record in caplog.records] == [
        "davis (val): frames with transparency laid over white: 2 (5 frames read)",
        "davis (val): frames of another size than the first of their clip, stretched to it: 1 (5 frames read)",
    ]
    frames[4].write_bytes(b"no picture")
    with pytest.raises(ValueError, match="the clip swimmer of davis has a frame 00004.png that cannot be read: "):
        measure_propagation(pixel_encoder(8), data, OPTIONS, settings)


def test_models_of_other_images_are_refused_in_a_sentence() -> None:
    gray = ImageFormat("gray", ("gray",), mean=(0.5,), std=(0.2,))
    encoder: Any = SimpleNamespace(name="mine", patch_size=8, image_format=gray)
    with pytest.raises(ValueError, match="clips are RGB of 8 bits, and mine takes 1 channel: gray; uint8"):
        measure_propagation(encoder, EvaluationData(size=32), OPTIONS, PropagationSettings(frames=3))
