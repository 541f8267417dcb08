"""The vision towers of CLIP and SigLIP come in, are trained, and go back, with equal features."""

from pathlib import Path

import pytest
import transformers
from transformers import AutoModel, PreTrainedModel

from hf_geossl.conversion.family_export import save_family
from hf_geossl.conversion.source import convert_source, read_source
from tests.helpers.vit_families import TRANSFORMERS, assert_equal_features, randomise, take_a_step


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_features_are_equal_both_ways_and_after_a_step_of_training(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = TRANSFORMERS[f"{name}_vision_model"]()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = convert_source(tmp_path / "theirs")
    assert ours.config.use_class_token == (name == "clip")
    assert ours.config.embedding_norm == (name == "clip")
    assert_equal_features(ours, theirs)
    take_a_step(ours)
    save_family(ours, name, tmp_path / "back")
    assert caplog.text.count("before its post_layernorm") == (2 if name == "clip" else 0)
    assert_equal_features(AutoModel.from_pretrained(tmp_path / "back").eval(), ours)


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_a_whole_model_gives_its_tower(name: str, tmp_path: Path) -> None:
    size = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 192}
    config = getattr(transformers, f"{name}Config")(
        text_config={**size, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**size, "image_size": 32, "patch_size": 8},
    )
    whole: PreTrainedModel = randomise(getattr(transformers, f"{name}Model")(config))  # type: ignore[assignment]
    whole.save_pretrained(tmp_path)
    trunk = read_source(tmp_path)
    assert trunk.family == f"{name.lower()}_vision_model"
    assert any(part.startswith("text_model") for part in trunk.left_out)
    assert_equal_features(convert_source(tmp_path), whole.vision_model)
