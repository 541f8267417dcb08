"""`geossl convert`: foreign checkpoints become folders that `AutoModel` opens."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from hf_geossl.cli.main import main
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
