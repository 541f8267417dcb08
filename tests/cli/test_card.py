"""`geossl card`: the model card of a folder, made again."""

from pathlib import Path

import pytest

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.cli.main import main


def test_a_lost_card_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = GTSAConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    GTSAModel(config).save_pretrained(tmp_path / "small")
    assert main(["card", str(tmp_path / "small")]) == 0
    card = tmp_path / "small" / "README.md"
    assert capsys.readouterr().out == f"The model card is {card}\n"
    first = card.read_text()
    assert "library_name: transformers" in first
    card.unlink()
    assert main(["card", str(tmp_path / "small")]) == 0
    assert card.read_text() == first
