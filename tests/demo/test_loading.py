"""Which model of a folder is shown, what it cannot show, and that its tokens are computed once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl.demo import loading
from hf_geossl.demo.loading import DemoModel, open_model
from hf_geossl.demo.pictures import read_upload
from hf_geossl.hub.export import export_model, make_image_processor
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.demo_models import (
    FORMATS,
    encoded,
    mark_whole,
    model_of,
    noise,
    normalized,
    save,
    whole_model,
)
from tests.helpers.methods import METHODS


def test_newest_whole_checkpoint_of_a_run_is_shown_with_the_teachers_features(tmp_path: Path) -> None:
    models = [whole_model("gtsa", seed=seed) for seed in range(3)]
    export_model(models[2], tmp_path, image_processor=make_image_processor((32, 32), (0.5,) * 3, (0.25,) * 3))
    for step, model in zip((20, 100, 120), models, strict=True):
        save(model, tmp_path / f"checkpoint-{step}")
        mark_whole(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-120" / "config.json").write_text("{}")  # cut off: no longer whole
    for folder in (tmp_path, tmp_path / "checkpoint-100"):
        model = open_model(folder)
        for name, value in models[1].teacher.gtsa.state_dict().items():
            torch.testing.assert_close(model.trunk.state_dict()[name], value, rtol=0, atol=0)
        for name, value in models[1].state_dict().items():
            torch.testing.assert_close(model.whole.state_dict()[name], value, rtol=0, atol=0)
        assert (model.mean, model.std) == ((0.5,) * 3, (0.25,) * 3)
        assert model.why_no_head() is None
    assert open_model(tmp_path).source == "the teacher in checkpoint-100"


def test_trunk_alone_says_what_is_missing(tmp_path: Path) -> None:
    for name, missing in [("gtsa", "rotation head"), ("loca", "position head"), ("equicoherent", "decoders")]:
        model = open_model(export_model(whole_model(name), tmp_path / name))
        assert model.whole is None
        assert model.source == "the trunk"
        sentence = model.why_no_head()
        assert missing in sentence
        assert sentence.count(". ") == 0
        assert sentence.endswith(".")


def test_models_without_what_a_tab_takes_say_so(tmp_path: Path) -> None:
    for number, (name, fields, words) in enumerate(
        [
            ("equicoherent", {"num_intermediate": 0}, "without decoders"),
            ("equicoherent", {"transformation": None}, "without decoders"),
            ("equicoherent", {"host": "vicreg", "reconstruction_weight": 0}, "without decoders"),
            ("loca", {"location_target": "self"}, "their own view"),
            ("loca", {"image_size": (32, 48)}, "48 x 32"),
        ]
    ):
        model = open_model(save(whole_model(name, **fields), tmp_path / str(number)))
        assert words in str(model.why_no_head())


def test_folders_that_hold_no_model_of_ours_are_refused_in_one_line(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file.replace("_json", ".json")).write_text(text)
        return tmp_path / name

    cut = save(METHODS["gtsa"].model("Model"), tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    part = save(METHODS["gtsa"].model("Model"), tmp_path / "part")
    config = json.loads((part / "config.json").read_text()) | {"num_hidden_layers": 6}
    (part / "config.json").write_text(json.dumps(config))
    grey = save(METHODS["gtsa"].model("Model", num_channels=1), tmp_path / "grey")
    processed = save(METHODS["gtsa"].model("Model"), tmp_path / "processed")
    (processed / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    for place, message in [
        (tmp_path / "nowhere", "there is no folder"),
        (folder("empty"), "no config.json"),
        (
            folder("bert", config_json='{"model_type": "bert"}'),
            "type 'bert', and this library's are gtsa, loca, equicoherent",
        ),
        (folder("list", config_json="[]"), "no configuration"),
        (folder("broken", config_json="{"), "cannot be read"),
        (folder("weightless", config_json='{"model_type": "gtsa"}'), "cannot be opened"),
        (cut, "cannot be opened"),
        (part, "incomplete"),
        (grey, "takes 1 channels, and nothing says what they are"),
        (processed, "three means"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            open_model(place)
        assert "\n" not in str(caught.value)


def test_tokens_are_computed_once_and_not_cached_forever(opened: dict[str, DemoModel], monkeypatch: Any) -> None:
    model = DemoModel(opened["gtsa"].trunk, None, IMAGENET_MEAN, IMAGENET_STD, "the trunk")
    monkeypatch.setattr(loading, "_CACHED", 3)
    calls: list[int] = []
    hook = model.trunk.register_forward_pre_hook(lambda *args: calls.append(1))
    for seed in (0, 1, 0, 2, 0, 3, 0, 1):  # 1 has been dropped at 3
        model.encode(noise(seed))
    hook.remove()
    assert len(calls) == 5


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_models_of_other_images_get_their_channels_in_units_and_normalised(
    method: str, kind: str, tmp_path: Path
) -> None:
    model = model_of(method, kind, tmp_path)
    assert model.image_format == FORMATS[kind]
    picture = read_upload(encoded(kind), FORMATS[kind])
    torch.testing.assert_close(model.pixels([picture]), normalized(kind), atol=1e-4, rtol=1e-4)
    trunk = getattr(model.whole.teacher, method)
    with torch.no_grad():
        states = trunk(normalized(kind)).last_hidden_state[0, int(trunk.config.use_class_token) :]
    torch.testing.assert_close(model.encode(picture)[0], states.view(4, 4, -1), atol=1e-3, rtol=1e-3)
    assert model.last_attention(picture, finer=True).shape[-1] == 64 + int(trunk.config.use_class_token)
