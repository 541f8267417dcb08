"""`geossl convert`: foreign checkpoints become folders that `AutoModel` opens."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from hf_geossl.cli.main import main
from hf_geossl.hub.card import write_card
from tests.helpers.small_recipes import error_line


def test_convert_writes_a_folder_that_auto_model_opens(
    authors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "converted"
    message = error_line(capsys, "convert", "gtsa", str(authors_file), str(out))
    assert "48 wide, which is no multiple of 64" in message
    assert "--num_attention_heads" in message
    assert main(["convert", "gtsa", str(authors_file), str(out), "--num_attention_heads", "3"]) == 0
    from hf_geossl import GTSAConfig
    from hf_geossl.conversion import convert_gtsa_checkpoint

    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected = convert_gtsa_checkpoint(authors_file, GTSAConfig(num_attention_heads=3))
    assert torch.equal(
        AutoModel.from_pretrained(out)(pixels).last_hidden_state, expected.gtsa(pixels).last_hidden_state
    )
    teacher = tmp_path / "teacher"
    assert (
        main(["convert", "gtsa", str(authors_file), str(teacher), "--num_attention_heads", "3", "--weights", "teacher"])
        == 0
    )
    features = AutoModel.from_pretrained(teacher)(pixels).last_hidden_state
    assert torch.equal(features, expected.teacher.gtsa(pixels).last_hidden_state)
    assert "exists and is not empty" in error_line(capsys, "convert", "gtsa", str(authors_file), str(out))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    assert "broken.pth" in error_line(capsys, "convert", "timm", str(broken), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_choices_that_a_checkpoint_does_not_have_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    words = [str(tmp_path / "a.pth"), str(tmp_path / "out")]
    assert "--weights must be one of teacher, student for dino" in error_line(
        capsys, "convert", "dino", *words, "--weights", "full"
    )
    assert "--weights does not apply to timm" in error_line(capsys, "convert", "timm", *words, "--weights", "full")
    assert "there is no 'tim'; did you mean 'timm'?" in error_line(capsys, "convert", "tim", *words)
    assert "there is no file nowhere.pth" in error_line(capsys, "convert", "timm", "nowhere.pth", words[1])


def test_any_vit_is_converted_and_goes_back_to_its_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers.vit_families import TRANSFORMERS, assert_equal_features

    theirs = TRANSFORMERS["dinov2_with_registers"]()
    theirs.save_pretrained(tmp_path / "theirs")
    words = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(words))
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    said = capsys.readouterr().out
    assert "converted theirs (dinov2_with_registers) to" in said
    assert "user/name --dry_run" in said
    card = write_card(tmp_path / "ours").read_text()
    assert (
        "The weights are those of theirs (dinov2_with_registers), in a form that opens here; nothing was trained."
        in card
    )
    assert "Geometric Transformation" not in card  # of whose paper they are not
    ours = AutoModel.from_pretrained(tmp_path / "ours")
    assert_equal_features(ours, theirs)
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "dinov2"]) == 0
    assert_equal_features(AutoModel.from_pretrained(tmp_path / "back").eval(), theirs)
    for folder in ("ours", "back"):
        processor = json.loads((tmp_path / folder / "preprocessor_config.json").read_text())
        assert (processor["image_mean"], processor["image_std"]) == ([0.1] * 3, [0.2] * 3)
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "timm"), "--to", "timm"]) == 0
    assert "timm.create_model" in capsys.readouterr().out


def test_words_of_a_conversion_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "a.pth").write_bytes(b"")
    file = str(tmp_path / "a.pth")
    assert "give SOURCE OUT, or KIND FILE OUT, got 1 words" in error_line(capsys, "convert", "vit")
    assert "--to: there is no 'dino2'; did you mean 'dinov2'?" in error_line(
        capsys, "convert", file, out, "--to", "dino2"
    )
    assert "convert the file first" in error_line(capsys, "convert", "timm", file, out, "--to", "vit")
    assert "--weights must be teacher or student, got full" in error_line(
        capsys, "convert", file, out, "--weights", "full"
    )
    assert "there is no file or folder /nowhere/at/all" in error_line(capsys, "convert", "/nowhere/at/all", out)
    assert "a.pth is not a readable PyTorch checkpoint" in error_line(capsys, "convert", file, out)
    assert not (tmp_path / "out").exists()
