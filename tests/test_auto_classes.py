"""A folder saved from any class opens with every Auto class, with the package and, through remote code, without it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, ViTImageProcessor

from hf_geossl import (
    GTSABackbone,
    GTSAConfig,
    GTSAForImageClassification,
    GTSAForPreTraining,
    GTSAForSemanticSegmentation,
    GTSAModel,
)
from hf_geossl.training.export import export_model

KINDS = {
    "model": GTSAModel,
    "backbone": GTSABackbone,
    "classification": GTSAForImageClassification,
    "segmentation": GTSAForSemanticSegmentation,
    "pretraining": GTSAForPreTraining,
}
SAVED = [*KINDS, "exported"]
CODE = {
    "configuration_gtsa.py",
    "configuration_vit.py",
    "geometry.py",
    "modeling_gtsa.py",
    "modeling_vit.py",
    "objectives.py",
    "pretraining_gtsa.py",
}
CLASSES = {
    "AutoModel": "GTSAModel",
    "AutoModelForImageClassification": "GTSAForImageClassification",
    "AutoModelForSemanticSegmentation": "GTSAForSemanticSegmentation",
    "AutoModelForPreTraining": "GTSAForPreTraining",
    "AutoBackbone": "GTSABackbone",
}

# Runs in a process of its own: argv[1] is "registered" or "remote", argv[2] the folder of folders, argv[3] the answers.
OPENER = """
import json, sys
from pathlib import Path

side, root, answers = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if side == "remote":
    sys.modules["hf_geossl"] = None  # `import hf_geossl` raises ImportError
    try:
        import hf_geossl
        raise SystemExit("hf_geossl can be imported")
    except ImportError:
        pass
else:
    import hf_geossl
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, pipeline
from transformers.models.auto.auto_factory import _BaseAutoModelClass

trust = {"trust_remote_code": True} if side == "remote" else {}
pixels = load_file(root / "pixels.safetensors")["pixels"]
tensors, names = {}, {}


def features(auto, model):
    with torch.no_grad():
        if auto == "AutoBackbone":
            return model(pixels).feature_maps[-1]
        trunk = model if auto == "AutoModel" else model.gtsa
        return trunk(pixels).last_hidden_state


def open_with(auto, path):
    if auto == "AutoBackbone":
        if side == "registered":
            return hf_geossl.load_backbone(str(path))
        return _BaseAutoModelClass.from_pretrained.__func__(AutoBackbone, str(path), **trust)
    return getattr(transformers, auto).from_pretrained(path, **trust)


AUTOS = ["AutoModel", "AutoModelForImageClassification", "AutoModelForSemanticSegmentation",
         "AutoModelForPreTraining", "AutoBackbone"]
for path in sorted(p for p in root.iterdir() if p.is_dir()):
    config = AutoConfig.from_pretrained(path, **trust)
    names[f"{path.name}/AutoConfig"] = [type(config).__name__, type(config).__module__, config.hidden_size]
    processor = AutoImageProcessor.from_pretrained(path, **trust)
    names[f"{path.name}/AutoImageProcessor"] = [type(processor).__name__, "", processor.size["height"]]
    for auto in AUTOS:
        model = open_with(auto, path)
        names[f"{path.name}/{auto}"] = [type(model).__name__, type(model).__module__, model.training]
        tensors[f"{path.name}/{auto}"] = features(auto, model)
        if auto == "AutoModelForPreTraining":
            with torch.no_grad():
                tensors[f"{path.name}/teacher"] = model.teacher.gtsa(pixels).last_hidden_state
        if path.name == "classification" and auto == "AutoModelForImageClassification":
            with torch.no_grad():
                tensors["logits"] = model(pixels).logits
        if path.name == "segmentation" and auto == "AutoModelForSemanticSegmentation":
            with torch.no_grad():
                tensors["segmentation"] = model(pixels).logits

# a model opened by the one Auto class, saved again, opens with the others
again = answers / "again"
for source, first, then in (
    ("model", "AutoModelForImageClassification", ("AutoModelForPreTraining", "AutoModel", "AutoBackbone")),
    ("pretraining", "AutoModelForPreTraining", ("AutoModelForSemanticSegmentation", "AutoModelForPreTraining")),
):
    saved = again / f"{source}-{first}"
    open_with(first, root / source).save_pretrained(saved)
    names[f"{saved.name}/files"] = sorted(p.name for p in saved.glob("*.py"))
    names[f"{saved.name}/auto_map"] = json.loads((saved / "config.json").read_text())["auto_map"]
    for auto in then:
        model = open_with(auto, saved)
        names[f"{saved.name}/{auto}"] = [type(model).__name__, type(model).__module__, model.training]
        tensors[f"{saved.name}/{auto}"] = features(auto, model)

picture = Image.open(root / "picture.png")
extract = pipeline("image-feature-extraction", model=str(root / "exported"), **trust)
tensors["pipeline/features"] = torch.tensor(extract(picture))
tensors["pipeline/pooled"] = torch.tensor(extract(picture, pool=True))
classify = pipeline("image-classification", model=str(root / "classification"), **trust)
names["pipeline/classes"] = [[found["label"], found["score"]] for found in classify(picture)]

assert side == "registered" or not any(name.startswith("hf_geossl.") for name in sys.modules)
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, answers / "tensors.safetensors")
(answers / "names.json").write_text(json.dumps(names))
"""


def _randomised(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """One model of each class, each with a trunk of its own."""
    config = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config |= {"projector_hidden_size": 16, "projection_size": 12, "predictor_hidden_size": 12}
    config |= {"rotation_hidden_sizes": (8, 8)}
    return {
        name: _randomised(kind(GTSAConfig(**config, num_labels=3)), seed)
        for seed, (name, kind) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def folders(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    export_model(models["pretraining"], root / "exported", weights="teacher", image_processor=processor)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "picture.png")
    save_file({"pixels": _pixels()}, root / "pixels.safetensors")
    return root


def _pixels() -> torch.Tensor:
    return torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def answers(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Any]]:
    """What two processes found that open every folder: with the package, and without it."""
    running = {}
    for side in ("registered", "remote"):
        place = tmp_path_factory.mktemp(side)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
        environment |= {"HF_HOME": str(place / "home"), "HF_MODULES_CACHE": str(place / "modules")}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", OPENER, side, str(folders), str(place)]
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running[side] = (place, process)
    found = {}
    try:
        for side, (place, process) in running.items():
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()[-4000:]
            found[side] = (json.loads((place / "names.json").read_text()), load_file(place / "tensors.safetensors"))
    finally:
        for _, process in running.values():
            process.kill()
    return found


def _trunk_features(models: dict[str, Any], name: str) -> torch.Tensor:
    """Computed here, from the model that was saved."""
    model = models["pretraining" if name == "exported" else name]
    with torch.no_grad():
        if name == "exported":
            return model.teacher.gtsa(_pixels()).last_hidden_state
        if name == "backbone":
            trunk = GTSAModel(model.config).eval()
            trunk.load_state_dict(model.state_dict())
            return trunk(_pixels()).last_hidden_state
        return (model if name == "model" else model.gtsa)(_pixels()).last_hidden_state


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _maps(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[:, 1:].transpose(1, 2).reshape(2, 32, 5, 3)


@pytest.mark.parametrize("saved", SAVED)
def test_every_folder_holds_all_code_and_names_every_auto_class(folders: Path, saved: str) -> None:
    assert {path.name for path in (folders / saved).glob("*.py")} >= CODE
    config = json.loads((folders / saved / "config.json").read_text())
    expected = {auto: f"modeling_gtsa.{name}" for auto, name in CLASSES.items()}
    expected["AutoModelForPreTraining"] = "pretraining_gtsa.GTSAForPreTraining"
    assert config["auto_map"] == {**expected, "AutoConfig": "configuration_gtsa.GTSAConfig"}
    assert config["model_type"] == "gtsa"


@pytest.mark.parametrize("side", ["registered", "remote"])
@pytest.mark.parametrize("saved", SAVED)
def test_every_auto_class_opens_every_folder_with_its_trunk(
    saved: str, side: str, answers: Any, models: dict[str, Any]
) -> None:
    names, tensors = answers[side]
    home = "hf_geossl." if side == "registered" else "transformers_modules."
    expected = _trunk_features(models, saved)
    for auto, class_name in CLASSES.items():
        found_class, module, training = names[f"{saved}/{auto}"]
        assert found_class == class_name
        assert module.startswith(home)
        assert training is False
        _close(tensors[f"{saved}/{auto}"], _maps(expected) if auto == "AutoBackbone" else expected)
    assert names[f"{saved}/AutoConfig"][0] == "GTSAConfig"
    assert names[f"{saved}/AutoConfig"][1].startswith(home)
    assert names[f"{saved}/AutoConfig"][2] == 32
    assert names[f"{saved}/AutoImageProcessor"][0].startswith("ViTImageProcessor")
    assert names[f"{saved}/AutoImageProcessor"][2] == 32


@pytest.mark.parametrize("side", ["registered", "remote"])
def test_heads_and_teacher_come_along(side: str, answers: Any, models: dict[str, Any]) -> None:
    _, tensors = answers[side]
    with torch.no_grad():
        _close(tensors["logits"], models["classification"](_pixels()).logits)
        _close(tensors["segmentation"], models["segmentation"](_pixels()).logits)
        _close(tensors["pretraining/teacher"], models["pretraining"].teacher.gtsa(_pixels()).last_hidden_state)
    for saved in SAVED:
        if saved != "pretraining":  # a folder without a teacher: it starts as the student
            _close(tensors[f"{saved}/teacher"], _trunk_features(models, saved))


@pytest.mark.parametrize("side", ["registered", "remote"])
def test_a_model_saved_again_opens_with_the_other_auto_classes(side: str, answers: Any, models: dict[str, Any]) -> None:
    names, tensors = answers[side]
    for source, first, then in (
        ("model", "AutoModelForImageClassification", ("AutoModelForPreTraining", "AutoModel", "AutoBackbone")),
        ("pretraining", "AutoModelForPreTraining", ("AutoModelForSemanticSegmentation", "AutoModelForPreTraining")),
    ):
        saved = f"{source}-{first}"
        assert set(names[f"{saved}/files"]) >= CODE
        assert names[f"{saved}/auto_map"].keys() == {"AutoConfig", *CLASSES}
        expected = _trunk_features(models, source)
        for auto in then:
            assert names[f"{saved}/{auto}"][0] == CLASSES[auto]
            _close(tensors[f"{saved}/{auto}"], _maps(expected) if auto == "AutoBackbone" else expected)


@pytest.mark.parametrize("side", ["registered", "remote"])
def test_pipelines(side: str, answers: Any, models: dict[str, Any], folders: Path) -> None:
    names, tensors = answers[side]
    picture = np.asarray(Image.open(folders / "picture.png"), dtype=np.float32)
    pixels = torch.from_numpy((picture / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
    with torch.no_grad():
        outputs = models["pretraining"].teacher.gtsa(pixels)
        _close(tensors["pipeline/features"], outputs.last_hidden_state)
        _close(tensors["pipeline/pooled"], outputs.last_hidden_state[:, 1:].mean(1))
        scores = models["classification"](pixels).logits.softmax(-1)[0]
    assert dict(names["pipeline/classes"]) == pytest.approx(
        {f"LABEL_{index}": score for index, score in enumerate(scores.tolist())}, abs=1e-5
    )


def test_the_installed_package_wins_over_code_in_the_folder(folders: Path) -> None:
    model = AutoModel.from_pretrained(folders / "pretraining", trust_remote_code=True)
    assert type(model) is GTSAModel


def test_new_models_from_a_configuration() -> None:
    config = GTSAConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_labels=4)
    assert type(AutoModelForImageClassification.from_config(config)) is GTSAForImageClassification
