"""The command line: recipes, every argument, errors of one line, and the main job on real input in three formats."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModel

from hf_geossl.cli.main import main
from hf_geossl.cli.recipes import UsageError, make_config, model_fields, parse_pretrain, recipes
from tests.helpers.photographs import pieces, write_folder

SMALL = {
    "method": "gtsa",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projector_hidden_size": 16,
    "projection_size": 16,
    "predictor_hidden_size": 16,
    "rotation_hidden_sizes": [16, 8],
    "roi_output_sizes": [3, 2],
    "num_matches": [8, 2],
    "global_size": 32,
    "local_size": 16,
    "num_local": 2,
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "logging_steps": 2,
    "save_steps": 2,
    "shuffle_block": 8,
    "base_learning_rate": 0.1,
    "use_cpu": True,
}

SMALL_LOCA = {
    "method": "loca",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "head_hidden_size": 32,
    "head_bottleneck_size": 16,
    "num_prototypes": 16,
    "num_kept_query_tokens": 6,
    "reference_size": 32,
    "focal_size": 16,
    "num_focal": 2,
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "logging_steps": 2,
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "shuffle_block": 8,
    "base_learning_rate": 0.05,
    "use_cpu": True,
}

SMALL_EQUICOHERENT = {
    "method": "equicoherent",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "patch_features": 48,
    "head_hidden_size": 32,
    "head_bottleneck_size": 16,
    "num_prototypes": 32,
    "projector_sizes": [32, 32],
    "global_size": 32,
    "local_size": 16,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "logging_steps": 1,
    "shuffle_block": 8,
    "base_learning_rate": 0.05,
    "use_cpu": True,
}

OPEN_ELSEWHERE = """
import sys
sys.modules["hf_geossl"] = None  # not importable
import torch
from transformers import AutoImageProcessor, AutoModel
from PIL import Image
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = AutoImageProcessor.from_pretrained(folder)(Image.new("RGB", (50, 40), "red"), return_tensors="pt")
    print(model(**inputs).last_hidden_state.double().abs().sum().item())
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output_dir": str(tmp_path / "run")}))
    return path


def _error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_main_job_on_photographs_in_three_formats(tmp_path: Path, recipe: Path) -> None:
    """A folder of JPEG, a parquet and a WebDataset of the same photographs; then AutoModel without the package."""
    folder = write_folder(tmp_path / "jpeg", 40)
    files = sorted(folder.iterdir())
    table = pa.table({"picture": [{"bytes": path.read_bytes(), "path": path.name} for path in files]})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=10)
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for path in files:
            archive.add(path, arcname=path.name)
    runs = {"jpeg": "jpeg", "parquet": "photos.parquet", "tar": "photos.tar"}
    for name, data in runs.items():
        arguments = ["--dataset", str(tmp_path / data), "--output_dir", str(tmp_path / f"run-{name}")]
        arguments += ["--image_column", "picture"] if name == "parquet" else []
        assert main(["pretrain", str(recipe), *arguments]) == 0
    folders = [tmp_path / f"run-{name}" for name in runs]
    expected = []
    for path in folders:
        from PIL import Image
        from transformers import AutoImageProcessor

        inputs = AutoImageProcessor.from_pretrained(path)(Image.new("RGB", (50, 40), "red"), return_tensors="pt")
        expected.append(AutoModel.from_pretrained(path)(**inputs).last_hidden_state.double().abs().sum().item())
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", OPEN_ELSEWHERE, *map(str, folders)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert [float(line) for line in process.stdout.split()] == pytest.approx(expected, rel=1e-6)
    assert len({round(value, 3) for value in expected}) == 3  # other orders, other weights


def test_quickstart_takes_a_folder_of_photographs(tmp_path: Path) -> None:
    """The README's line for one's own images, with the recipe as it is shipped."""
    arguments = ["--dataset", str(write_folder(tmp_path / "jpeg", 12)), "--output_dir", str(tmp_path / "run")]
    small = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0"]
    small += ["--report_to", "none", "--base_learning_rate", "none", "--learning_rate", "0.001"]
    assert main(["pretrain", "quickstart", *arguments, *small]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| data | jpeg (folder) |" in card
    assert str(tmp_path) not in card


def test_run_ends_with_the_model_two_lines_and_a_picture(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(recipe), "--dataset", "scenes", "--dataset_config", "scene-48"]) == 0
    out = capsys.readouterr().out
    assert f'model = AutoModel.from_pretrained("{tmp_path / "run"}", trust_remote_code=True)' in out
    assert "from transformers import AutoModel" in out
    from PIL import Image

    with Image.open(tmp_path / "run" / "features.png") as picture:
        assert picture.size == (6 + 6 * 174, 6 + 3 * 194)
        assert len(picture.getcolors(1 << 20)) > 500
    assert torch.isfinite(AutoModel.from_pretrained(tmp_path / "run")(torch.zeros(1, 3, 32, 32)).pooler_output).all()


def test_folder_that_holds_a_run_is_refused_and_resumed_on_request(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = ["--dataset", str(write_folder(tmp_path / "jpeg", 20))]
    assert main(["pretrain", str(recipe), *photographs]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    message = _error(capsys, "pretrain", str(recipe), *photographs)
    assert "is not empty: choose another --output_dir, or go on with the run in it" in message
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main(["pretrain", str(recipe), *photographs, "--max_steps", "6", "--resume_from_checkpoint", "true"]) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "crop_loss" in entry] == [2, 4, 6]


def test_resume_without_a_checkpoint_starts_from_the_beginning(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = ["--dataset", str(write_folder(tmp_path / "jpeg", 20)), "--max_steps", "1"]
    assert main(["pretrain", str(recipe), *photographs, "--resume_from_checkpoint", "true"]) == 0
    assert "holds no whole checkpoint yet: the run starts from the beginning" in capsys.readouterr().err


def test_resume_in_a_strangers_folder_is_refused(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("my precious")
    message = _error(capsys, "pretrain", str(recipe), "--resume_from_checkpoint", "true")
    assert "holds no whole checkpoint to go on from, and other things (README.md)" in message
    assert (tmp_path / "run" / "README.md").read_text() == "my precious"


def test_interrupt_saves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "hf_geossl.cli", "pretrain", str(recipe), "--max_steps", "100000"]
    command += ["--dataset", str(write_folder(tmp_path / "jpeg", 20)), "--save_steps", "100000"]
    command += ["--dataloader_num_workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((run / ".features").glob("before_*.png")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.2)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in err
    assert "--resume_from_checkpoint true" in out
    assert "stopped at step" in out
    assert (run / f"checkpoint-{out.split('stopped at step ')[1].split('.')[0]}" / "COMPLETE.json").is_file()


def test_help_shows_every_argument_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    from hf_geossl import GTSATrainingArguments

    for name in [*GTSATrainingArguments.__dataclass_fields__, "dataset", "image_column", "hidden_size", "global_size"]:
        assert f"--{name}" in text, name
    for piece in ("(default: 0.996)", "(default: 384)", "(default: scenes)", "quickstart", "loca_base_imnet1k"):
        assert piece in text
    assert "'geossl pretrain RECIPE --help' shows those of the recipe's method" in text


def test_help_of_a_recipe_shows_its_methods_arguments_and_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "loca_base_imnet1k", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    from hf_geossl import LOCATrainingArguments

    for name in [*LOCATrainingArguments.__dataclass_fields__, "num_prototypes", "focal_size", "eval_dataset"]:
        assert f"--{name}" in text, name
    for piece in ("arguments of loca", "(default: 18765)", "(default: 768)", "(default: ILSVRC/imagenet-1k)"):
        assert piece in text
    assert "--rotation_weight" not in text
    assert text.count("--patch_size ") == 1


@pytest.mark.parametrize(
    ("arguments", "pieces_of_the_message"),
    [
        (["--max_stesp", "3"], ["--max_stesp", "did you mean '--max_steps'?"]),
        (["--max_steps", "many"], ["--max_steps", "'many'"]),
        (["--hiden_size", "3"], ["did you mean '--hidden_size'?"]),
        (["--optim", "adamw_torhc"], ["--optim", "did you mean 'adamw_torch'?"]),
        (["--clip_mode", "tensors"], ["clip_mode must be 'tensor' or 'global', got 'tensors'"]),
        (["--teacher_momentum", "2"], ["teacher_momentum must be in [0, 1], got 2.0"]),
        (["--local_size", "20"], ["local_size of the views must be a multiple of the patch size 8, got 20"]),
        (["--num_local", "none"], ["--num_local needs a value"]),
        (["--learning_rate", "0.5"], ["learning_rate=0.5 and base_learning_rate=0.1", "were both given"]),
        (["--patch_size", "0"], ["geossl: patch_size must be at least 1, got 0"]),
        (["--num_attention_heads", "3"], ["hidden_size must be a multiple of num_attention_heads, got 32 and 3"]),
        (["--dataset", "no/where/at/all"], ["no/where/at/all"]),
        (["--image_column", "picture", "--dataset", "PARQUET"], ["picture", "image"]),
        (["--dataset", "EMPTY"], ["EMPTY"]),
        (["--dataset_config", "sceen-48"], ["sceen-48"]),
    ],
)
def test_wrong_arguments_give_one_line(
    arguments: list[str],
    pieces_of_the_message: list[str],
    tmp_path: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "EMPTY").mkdir()
    pq.write_table(pa.table({"image": pieces(4)}), tmp_path / "PARQUET.parquet")
    replaced = {"EMPTY": str(tmp_path / "EMPTY"), "PARQUET": str(tmp_path / "PARQUET.parquet")}
    message = _error(capsys, "pretrain", str(recipe), *(replaced.get(word, word) for word in arguments))
    for piece in pieces_of_the_message:
        assert piece in message
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference_size", "48"], "reference_size of the views must be the model's image_size 32, got 48"),
        (["--focal_size", "20"], "focal_size must be a multiple of patch_size = 8 pixels, got 20"),
        (["--patch_size", "12"], "image_size"),
        (["--blur", "on"], "blur must be 'off'"),
        (["--local_size", "16"], "unknown argument --local_size; did you mean '--focal_size'?"),
        (["--visible_reference_ratio", "-2"], "visible_reference_ratio must be 0 or more, got -2.0"),
        (["--reference_selection", "last"], "reference_selection must be one of consecutive, unstructured, first"),
    ],
)
def test_wrong_loca_arguments_give_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL_LOCA, "output_dir": str(tmp_path / "run"), "eval_strategy": "no"}))
    assert message in _error(capsys, "pretrain", str(recipe), *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "ibott"], "host must be one of ibot, dinov2, dino, vicreg, simclr, got 'ibott'"),
        (["--transformation", "warp"], "transformation must be one of se2, rotation, translation, color, blur, None"),
        (["--equivariant_features", "48"], "equivariant_features must be at least 1 and below patch_features=48"),
        (
            ["--host", "dino", "--model_split", "logits"],
            "split='logits' divides the outputs of iBOT's head, got host='dino'",
        ),
        (["--model_split", "channels"], "split must be one of feature, logits, got 'channels'"),
        (["--centering", "sinkhorn"], "centering='sinkhorn' is DINOv2's, got host='ibot'"),
        (
            ["--host", "vicreg", "--num_local", "2"],
            "num_local must be 0 for the host 'vicreg', which takes no local views",
        ),
        (["--local_size", "20"], "local_size must be a multiple of patch_size = 8 pixels, got 20"),
        (["--padding_mode", "black"], "padding_mode"),
        (["--num_intermediate", "-1"], "num_intermediate must be 0 or more, got -1"),
        (["--reconstruction_weight", "-1"], "reconstruction_weight must be 0 or more, got -1"),
        (["--learning_rate_scaling", "root"], "learning_rate_scaling must be 'linear' or 'sqrt', got 'root'"),
        (["--layer_decay", "0"], "layer_decay must be above 0 and at most 1, got 0.0"),
        (["--patch_embed_learning_rate", "3"], "patch_embed_learning_rate must be above 0 and at most 1, got 3.0"),
        (["--freeze_last_layer", "-1"], "freeze_last_layer must be 0 or more, got -1.0"),
        (["--teacher_temperature_start", "0"], "teacher_temperature_start must be above 0, got 0.0"),
        (["--teacher_temperature_warmup", "-0.1"], "teacher_temperature_warmup must be 0 or more, got -0.1"),
        (["--rotation_weight", "1"], "unknown argument --rotation_weight"),
        (
            ["--host", "dinov2", "--per_device_train_batch_size", "1"],
            "batch_size must be 2 or more, host 'dinov2' compares",
        ),
        (
            ["--host", "vicreg", "--per_device_train_batch_size", "1"],
            "batch_size must be 2 or more, host 'vicreg' compares",
        ),
        (
            ["--host", "simclr", "--per_device_train_batch_size", "1"],
            "batch_size must be 2 or more, host 'simclr' compares",
        ),
    ],
)
def test_wrong_equicoherent_arguments_give_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL_EQUICOHERENT, "output_dir": str(tmp_path / "run")}))
    photographs = ["--dataset", str(write_folder(tmp_path / "jpeg", 8))]
    assert message in _error(capsys, "pretrain", str(recipe), *photographs, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_split", "channels"], "model_split must be one of feature, logits, got 'channels'"),
        (
            ["--host", "dino", "--model_split", "logits"],
            "model_split='logits' divides the outputs of iBOT's head, got host='dino'",
        ),
        (
            ["--model_split", "logits"],
            "num_prototypes must be patch_features - equivariant_features = 192 where model_split='logits', got 128; "
            "leave it out or set it to none",
        ),
        (["--num_intermediate", "-1"], "num_intermediate must be 0 or more, got -1"),
    ],
)
def test_wrong_configurations_are_told_in_the_words_of_the_command_line(arguments: list[str], message: str) -> None:
    """`--split` is the data's; what the message advises is right."""
    method, _, (_, model_arguments, _, _) = parse_pretrain(["equicoherent_quickstart", *arguments])
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make_config(method, model_arguments)
    mended = ["--model_split", "logits", "--num_prototypes", "none"]
    method, _, (_, model_arguments, _, _) = parse_pretrain(["equicoherent_quickstart", *mended])
    config = make_config(method, model_arguments)
    assert (config.split, config.num_prototypes) == ("logits", 192)


def test_wrong_recipes_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'quickstart'?" in _error(capsys, "pretrain", "quikstart")
    assert "did you mean 'pretrain'?" in _error(capsys, "pretran", "quickstart")
    assert "the recipe comes first" in _error(capsys, "pretrain", "--max_steps", "3")
    (tmp_path / "a.yaml").write_text("hidden_sise: 3")
    assert "unknown key 'hidden_sise'; did you mean 'hidden_size'?" in _error(
        capsys, "pretrain", str(tmp_path / "a.yaml")
    )
    (tmp_path / "b.yaml").write_text("- 1\n- 2")
    assert "must hold lines 'key: value', got list" in _error(capsys, "pretrain", str(tmp_path / "b.yaml"))
    (tmp_path / "c.yaml").write_text("a: [1")
    assert "is no valid YAML" in _error(capsys, "pretrain", str(tmp_path / "c.yaml"))
    (tmp_path / "d.yaml").write_text("method: gsta")
    assert "method 'gsta' is unknown; did you mean 'gtsa'?" in _error(capsys, "pretrain", str(tmp_path / "d.yaml"))
    assert "cannot be read" in _error(capsys, "pretrain", str(tmp_path / "e.yaml"))


def test_every_recipe_reads_and_the_command_line_wins() -> None:
    loca = {"loca_quickstart", "loca_base_imnet1k", "loca_small_imnet1k"}
    equicoherent = {f"equicoherent_{name}" for name in ("quickstart", "ibot_small", "dinov2_large", "vicreg_small")}
    gtsa = {"quickstart", "gtsa_small_coco", "gtsa_small_ade20k"}
    assert set(recipes()) == {*gtsa, *loca, *equicoherent, "dino_small_coco"}
    for name in ("gtsa_small_coco", "gtsa_small_ade20k"):
        # 16-bit floats want a GPU; all else is as published
        method, _, (data, model, views, args) = parse_pretrain([name, "--fp16", "false", "--use_cpu", "true"])
        config = method.config(**model.__dict__)
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 12, 6)
        assert (config.projector_hidden_size, config.projection_size, config.drop_path_rate) == (384, 768, 0.1)
        assert (views.global_size, views.local_size, views.num_global, views.num_local) == (224, 96, 2, 8)
        epoch = {"gtsa_small_coco": 118287, "gtsa_small_ade20k": 20210}[name] // 512
        assert args.max_steps == 100 * epoch
        assert args.get_warmup_steps(args.max_steps) == 10 * epoch
        assert args.correspondence_start == 11 * epoch
        assert (args.base_learning_rate, args.weight_decay, args.weight_decay_end) == (5e-4, 0.04, 0.4)
        assert (args.clip_mode, args.max_grad_norm, args.teacher_momentum) == ("tensor", 3.0, 0.996)
        assert data.dataset != "scenes"
    _, name, (_, _, _, args) = parse_pretrain(["quickstart", "--max_steps=7", "--base_learning_rate", "none"])
    assert (args.max_steps, args.base_learning_rate, args.output_dir) == (7, None, "geossl-quickstart")


@pytest.mark.parametrize(
    ("name", "trunk", "host", "split", "rate", "epoch", "epochs"),
    [
        ("equicoherent_ibot_small", (384, 12, 6), "ibot", (8192, 2048), 5e-4 * 1024 / 256, 1251, 800),
        ("equicoherent_dinov2_large", (1024, 24, 16), "dinov2", (2048, 512), 4e-3 * 2**0.5, 1250, 100),
        ("equicoherent_vicreg_small", (384, 12, 6), "vicreg", (512, 256), 1e-4 * 2048 / 256, 625, 800),
        ("dino_small_coco", (384, 12, 6), "dino", (8192, 2048), 5e-4 * 512 / 256, 231, 100),
    ],
)
def test_equicoherent_recipes_are_the_papers_settings(
    name: str, trunk: tuple[int, ...], host: str, split: tuple[int, int], rate: float, epoch: int, epochs: int
) -> None:
    batch = {"ibot": 1024, "dinov2": 2048, "vicreg": 2048, "dino": 512}[host]
    given = ["--fp16", "false", "--use_cpu", "true", "--per_device_train_batch_size", str(batch)]
    method, _, (data, model, views, args) = parse_pretrain([name, *given])
    config = method.config(**model_fields(model))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == trunk
    assert (config.host, config.patch_features, config.equivariant_features, config.split) == (host, *split, "feature")
    assert (config.patch_size, config.num_intermediate) == (16, 2)
    assert (config.transformation, config.num_decoders) == ((None, 0) if host == "dino" else ("se2", 2))
    assert args.scaled_learning_rate == pytest.approx(rate)
    assert args.max_steps == epoch * epochs
    assert args.get_warmup_steps(args.max_steps) == 10 * epoch
    assert args.weight_decay_end == (None if host == "vicreg" else 0.4)
    assert data.dataset != "scenes"
    made = method.views(host=config.host, transformation=config.transformation, num_local=views.num_local)
    assert made.num_local == {"ibot": 10, "dinov2": 8, "vicreg": 0, "dino": 8}[host]
    if config.has_teacher:
        assert args.freeze_last_layer == epoch
        assert config.num_prototypes == {"ibot": 8192, "dinov2": 65536, "dino": 65536}[host]
        assert (args.teacher_momentum, args.max_grad_norm) == (0.992 if host == "dinov2" else 0.996, 3.0)
    if host == "dinov2":
        assert (args.layer_decay, args.patch_embed_learning_rate, config.layerscale_value) == (0.9, 0.2, 1e-5)


@pytest.mark.parametrize(("name", "width", "heads"), [("loca_base_imnet1k", 768, 12), ("loca_small_imnet1k", 384, 6)])
def test_loca_recipes_are_the_authors_configuration(name: str, width: int, heads: int) -> None:
    method, _, (data, model, views, args) = parse_pretrain([name, "--use_cpu", "true"])
    config = method.config(**model.__dict__)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (width, 12, heads)
    assert (config.image_size, config.patch_size, config.drop_path_rate) == (224, 16, 0.1)
    assert (config.num_prototypes, config.num_kept_query_tokens, config.visible_reference_ratio) == (4096, 70, 0.2)
    assert (config.reference_selection, config.use_cluster_loss) == ("consecutive", True)
    assert (views.reference_size, views.focal_size, views.num_focal, views.blur) == (224, 96, 9, "off")
    assert not hasattr(views, "patch_size")  # asked once, of the model
    assert (args.max_steps, args.get_warmup_steps(args.max_steps), args.save_steps) == (125100, 18765, 5000)
    assert args.per_device_train_batch_size * 8 == 1024
    assert args.base_learning_rate * 1024 / 256 == 1e-3
    assert (args.min_learning_rate, args.weight_decay, args.weight_decay_end) == (None, 0.1, None)
    assert (args.clip_mode, args.max_grad_norm, args.decay_attention_biases) == ("global", 1.0, True)
    assert (args.teacher_momentum, args.teacher_momentum_end, args.seed) == (0.996, 1.0, 42)
    assert not args.fp16
    assert not args.bf16
    assert (data.dataset, data.split) == ("ILSVRC/imagenet-1k", "train")


def test_loca_on_photographs_is_measured_on_held_out_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with train and validation photographs; the result opens where the package is not installed."""
    write_folder(tmp_path / "jpeg" / "train", 24)
    write_folder(tmp_path / "jpeg" / "validation", 10)
    recipe = tmp_path / "small.yaml"
    # YAML's other 'off' is a word here
    recipe.write_text(yaml.safe_dump({**SMALL_LOCA, "output_dir": str(tmp_path / "run")}) + "blur: off\n")
    data = ["--dataset", str(tmp_path / "jpeg"), "--eval_dataset", str(tmp_path / "jpeg"), "--eval_images", "9"]
    assert main(["pretrain", str(recipe), *data]) == 0
    out = capsys.readouterr().out
    history = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert "eval_location_accuracy" in next(entry for entry in history if "eval_loss" in entry)  # eval_strategy steps
    line = re.search(r"position accuracy on 9 held-out images of jpeg \(validation\): ([\d.]+) %, chance 6\.2 %", out)
    assert line is not None, out[-500:]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "On 9 images of jpeg (validation) after step 4" in card
    accuracy = re.search(r"\| location accuracy \| ([\d.]+) \(knowing nothing: 0.0625\) \|", card)
    assert accuracy is not None
    assert 100 * float(accuracy.group(1)) == pytest.approx(float(line.group(1)), abs=0.06)
    assert f"Where queries are found: {tmp_path / 'run' / 'positions.png'}" in out
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", OPEN_ELSEWHERE, str(tmp_path / "run")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    from PIL import Image
    from transformers import AutoImageProcessor

    run = tmp_path / "run"
    inputs = AutoImageProcessor.from_pretrained(run)(Image.new("RGB", (50, 40), "red"), return_tensors="pt")
    expected = AutoModel.from_pretrained(run)(**inputs).last_hidden_state.double().abs().sum().item()
    assert float(process.stdout) == pytest.approx(expected, rel=1e-6)


def test_gtsa_prints_its_losses_on_held_out_images(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a plain folder, which has no part called validation."""
    held_out = ["--eval_dataset", str(write_folder(tmp_path / "others", 9)), "--eval_images", "8"]
    assert main(["pretrain", str(recipe), *held_out, "--dataset_config", "scene-48", "--picture", "false"]) == 0
    parts = r"loss (\S+), crop (\S+), correspondence (\S+), rotation (\S+)"
    found = re.search(rf"losses on 8 held-out images of others \(train\): {parts}", capsys.readouterr().out)
    card = (tmp_path / "run" / "README.md").read_text()
    rotation = re.search(r"\| rotation loss \| ([\d.]+) \(knowing nothing: 1.3863\) \|", card)
    assert found is not None
    assert rotation is not None
    assert float(rotation.group(1)) == pytest.approx(float(found.group(4)), abs=6e-4)


def test_missing_held_out_images_are_named_before_training(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, message in (
        (["--eval_dataset", "no/where/at/all"], "no/where/at/all"),
        (["--eval_dataset", "scenes", "--eval_images", "0"], "--eval_images must be at least 1, got 0"),
        (["--eval_dataset", "scenes", "--eval_split", "valid"], "valid"),
    ):
        assert message in _error(capsys, "pretrain", str(recipe), *given)
    assert not (tmp_path / "run").exists()


def test_convert_writes_a_folder_that_auto_model_opens(
    authors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "converted"
    message = _error(capsys, "convert", "gtsa", str(authors_file), str(out))
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
    assert "exists and is not empty" in _error(capsys, "convert", "gtsa", str(authors_file), str(out))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(io.BytesIO(b"no checkpoint").getvalue())
    assert "broken.pth" in _error(capsys, "convert", "timm", str(broken), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
