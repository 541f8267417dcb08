"""The model and views of `geossl pretrain --init_from`: what is taken from the source, what is said, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel, ViTImageProcessor, set_seed

from hf_geossl import GTSAModel
from hf_geossl.cli.main import main
from hf_geossl.cli.pretrain import describe_start, make_trainer
from hf_geossl.cli.pretrain_arguments import parse_pretrain
from tests.helpers.gtsa_run import small_config
from tests.helpers.photographs import write_folder
from tests.helpers.small_recipes import SMALL, error_line

TRUNK = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A recipe without fields of a trunk, a source with a processor of its own, and photographs."""
    set_seed(1)
    source = tmp_path / "source"
    GTSAModel(small_config(layerscale_value=0.5)).save_pretrained(source)
    ViTImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.25, 0.25, 0.2]).save_pretrained(source)
    recipe = {key: value for key, value in SMALL.items() if key not in TRUNK}
    (tmp_path / "post.yaml").write_text(yaml.safe_dump(recipe))
    photographs = write_folder(tmp_path / "photographs", 12)
    run = ["--dataset", str(photographs), "--output_dir", str(tmp_path / "run")]
    return [str(tmp_path / "post.yaml"), "--init_from", str(source), *run]


def test_a_run_starts_from_a_source_and_goes_on_with_its_heads(words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["pretrain", *words, "--freeze_trunk_steps", "2", "--save_steps", "4"]) == 0
    assert "use_mask_token" not in capsys.readouterr().err
    config = AutoConfig.from_pretrained(tmp_path / "run")
    assert (config.init_from, config.layerscale_value, config.hidden_size) == ("source", 0.5, 32)
    assert "| started from | source |" in (tmp_path / "run" / "README.md").read_text()
    first = AutoModel.from_pretrained(tmp_path / "run")
    assert not torch.equal(first.layernorm.weight, AutoModel.from_pretrained(tmp_path / "source").layernorm.weight)
    words[words.index("--init_from") + 1] = str(tmp_path / "run")
    words[words.index("--output_dir") + 1] = str(tmp_path / "last")
    given = parse_pretrain([*words, "--image_size", "48", "--global_size", "48"])
    trainer, _ = make_trainer(given, "")
    said = capsys.readouterr().err
    assert "has positions for 4 x 4 patches: resampled to 6 x 6" in said
    assert "is a whole pretraining model: its heads and teacher stay" in said
    assert torch.equal(trainer.model.teacher.gtsa.layernorm.weight, first.layernorm.weight)
    assert (trainer.views.mean, trainer.views.global_size) == ((0.5, 0.4, 0.3), 48)


def test_views_take_the_sources_moments_and_other_channels_its_filters(words: list[str], capsys: Any) -> None:
    trainer, _ = make_trainer(parse_pretrain(words), "")
    assert (trainer.views.mean, trainer.views.std) == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.2))
    assert list(trainer.processing_class.image_mean) == [0.5, 0.4, 0.3]
    filters = trainer.model.gtsa.embeddings.patch_embeddings.weight
    gray, _ = make_trainer(parse_pretrain([*words, "--channels", "gray", "--init_channels", "repeat"]), "")
    found = gray.model.gtsa.embeddings.patch_embeddings.weight
    torch.testing.assert_close(found, 3 * filters[:, :1])
    assert "source has 3 channels: its filters in turn in each of 1, times 3/1" in capsys.readouterr().err


def test_views_fit_the_patch_and_what_is_trained_is_said(words: list[str], capsys: Any) -> None:
    """By default 96 pixels, which patches of 10 do not divide."""
    words = [*words, "--patch_size", "10", "--global_size", "40", "--lora_rank", "2"]
    recipe = yaml.safe_load(Path(words[0]).read_text())
    Path(words[0]).write_text(
        yaml.safe_dump({k: v for k, v in recipe.items() if k not in ("local_size", "global_size")})
    )
    given = parse_pretrain(words)
    trainer, _ = make_trainer(given, "")
    assert (trainer.views.global_size, trainer.views.local_size) == (40, 100)
    said = capsys.readouterr().err
    assert "views fit the patch of 10 pixels: local_size 100" in said
    assert "has patches of 8 pixels: resampled to 10 by pseudo-inverse" in said
    assert describe_start(trainer, given.data).splitlines()[1].startswith("LoRA of rank 2: 2,048 of the trunk's ")


def test_resume_starts_from_the_source_again(words: list[str], tmp_path: Path) -> None:
    """Also where the run starts from the checkpoint's moments, which are the source's."""
    lora = ["--lora_rank", "2", "--anchor_weight", "1", "--save_steps", "2"]
    assert main(["pretrain", *words, *lora]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    expected = AutoModel.from_pretrained(tmp_path / "run").state_dict()
    assert main(["pretrain", *words, *lora, "--resume_from_checkpoint", "true"]) == 0
    found = AutoModel.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_contradictions_are_one_line(words: list[str], tmp_path: Path, capsys: Any) -> None:
    def error(*more: str) -> str:
        return error_line(capsys, "pretrain", *words, *more)

    assert "hidden_size must be 32, as in source that the run starts from, got 64: leave it out" in error(
        "--hidden_size", "64"
    )
    both = error("--model_name_or_path", str(tmp_path / "source"))
    assert "--model_name_or_path and --init_from both name what to start from" in both
    assert "there is no file or folder" in error("--init_from", str(tmp_path / "nowhere"))
    assert "--init_channels has no choice 'median'" in error("--init_channels", "median")
    given = parse_pretrain([words[0], *words[3:], "--init_channels", "repeat"])
    assert given.left_out == ("--init_channels means nothing without --init_from, and is left out",)
