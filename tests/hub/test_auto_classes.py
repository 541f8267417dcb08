"""A folder saved from any class opens with every Auto class, with the package and, through remote code, without it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_geossl.hub.auto_classes import auto_map_of
from hf_geossl.hub.export import export_model, make_image_processor
from tests.helpers.golden import ROOT
from tests.helpers.methods import METHODS, Method, randomise

SAVED_AS = {
    "model": "Model",
    "backbone": "Backbone",
    "classification": "ForImageClassification",
    "segmentation": "ForSemanticSegmentation",
    "pretraining": "ForPreTraining",
}
SAVED = [*SAVED_AS, "exported"]
TRUNK_CODE = (
    "configuration_vit",
    "dense_heads",
    "image_format",
    "modeling_vit",
    "modeling_vit_heads",
    "positions",
)  # beside the method's own two files
PRETRAINING_CODE = ("objectives", "teacher_student")
CLASSES = {
    "AutoModel": "Model",
    "AutoModelForImageClassification": "ForImageClassification",
    "AutoModelForSemanticSegmentation": "ForSemanticSegmentation",
    "AutoModelForDepthEstimation": "ForDepthEstimation",
    "AutoModelForObjectDetection": "ForObjectDetection",
    "AutoModelForPreTraining": "ForPreTraining",
    "AutoBackbone": "Backbone",
}

# Runs in a process of its own: argv[1] is "registered" or "remote", argv[2] the folder of methods' folders of folders,
# argv[3] the answers.
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


def features(auto, model):
    with torch.no_grad():
        if auto == "AutoBackbone":
            return model(pixels).feature_maps[-1]
        trunk = model if auto == "AutoModel" else model.base_model
        return trunk(pixels).last_hidden_state


def open_with(auto, path):
    if auto == "AutoBackbone":
        if side == "registered":
            return hf_geossl.load_backbone(str(path))
        return _BaseAutoModelClass.from_pretrained.__func__(AutoBackbone, str(path), **trust)
    return getattr(transformers, auto).from_pretrained(path, **trust)


AUTOS = ["AutoModel", "AutoModelForImageClassification", "AutoModelForSemanticSegmentation",
         "AutoModelForDepthEstimation", "AutoModelForObjectDetection", "AutoModelForPreTraining", "AutoBackbone"]


def open_everything(root, again):
    tensors, names = {}, {}
    for path in sorted(p for p in root.iterdir() if p.is_dir()):
        config = AutoConfig.from_pretrained(path, **trust)
        names[f"{path.name}/AutoConfig"] = [type(config).__name__, type(config).__module__, config.hidden_size]
        processor = AutoImageProcessor.from_pretrained(path, **trust)
        names[f"{path.name}/AutoImageProcessor"] = [type(processor).__name__, "", processor.size["height"]]
        for auto in AUTOS:
            if auto == "AutoModelForPreTraining" and side == "remote" and path.name != "pretraining":
                try:
                    open_with(auto, path)
                    raise SystemExit(f"{path} opens for pretraining")
                except ValueError as error:
                    assert "Unrecognized configuration class" in str(error), error
                continue
            model = open_with(auto, path)
            names[f"{path.name}/{auto}"] = [type(model).__name__, type(model).__module__, model.training]
            tensors[f"{path.name}/{auto}"] = features(auto, model)
            if auto == "AutoModelForPreTraining":
                with torch.no_grad():
                    teacher = getattr(model.teacher, model.base_model_prefix)
                    tensors[f"{path.name}/teacher"] = teacher(pixels).last_hidden_state
            if path.name == "classification" and auto == "AutoModelForImageClassification":
                with torch.no_grad():
                    tensors["logits"] = model(pixels).logits
            if path.name == "segmentation" and auto == "AutoModelForSemanticSegmentation":
                with torch.no_grad():
                    tensors["segmentation"] = model(pixels).logits

    # a model opened by the one Auto class, saved again, opens with the others
    for source, first, then in (
        ("model", "AutoModelForImageClassification", ("AutoModelForSemanticSegmentation", "AutoModel", "AutoBackbone")),
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

    extract = pipeline("image-feature-extraction", model=str(root / "exported"), **trust)
    tensors["pipeline/features"] = torch.tensor(extract(picture))
    tensors["pipeline/pooled"] = torch.tensor(extract(picture, pool=True))
    classify = pipeline("image-classification", model=str(root / "classification"), **trust)
    names["pipeline/classes"] = [[found["label"], found["score"]] for found in classify(picture)]
    return tensors, names


picture = Image.open(root / "picture.png")
for method in sorted(p for p in root.iterdir() if p.is_dir()):
    tensors, names = open_everything(method, answers / "again" / method.name)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, answers / f"{method.name}.safetensors")
    (answers / f"{method.name}.json").write_text(json.dumps(names))
assert side == "registered" or not any(name.startswith("hf_geossl.") for name in sys.modules)
"""


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


@pytest.fixture(scope="module")
def all_models() -> dict[str, dict[str, Any]]:
    """One model of each class, each with a trunk of its own."""
    found: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        config = method.config(num_hidden_layers=3, num_labels=3)
        found[name] = {
            saved: randomise(method.kind(kind)(copy.deepcopy(config)), seed=seed)
            for seed, (saved, kind) in enumerate(SAVED_AS.items())
        }
    return found


@pytest.fixture
def models(method: Method, all_models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return all_models[method.prefix]


@pytest.fixture(scope="module")
def all_folders(all_models: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    processor = make_image_processor((32, 32), [0.5] * 3, [0.25] * 3)
    for method, models in all_models.items():
        for name, model in models.items():
            model.save_pretrained(root / method / name)
            processor.save_pretrained(root / method / name)
        exported = root / method / "exported"
        export_model(models["pretraining"], exported, weights="teacher", image_processor=processor)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "picture.png")
    save_file({"pixels": _pixels()}, root / "pixels.safetensors")
    return root


@pytest.fixture
def folders(method: Method, all_folders: Path) -> Path:
    return all_folders / method.prefix


def _pixels() -> torch.Tensor:
    return torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def all_answers(all_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes found that open every folder of every method: with the package, and without it."""
    running = {}
    for side in ("registered", "remote"):
        place = tmp_path_factory.mktemp(side)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
        environment |= {"HF_HOME": str(place / "home"), "HF_MODULES_CACHE": str(place / "modules")}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(ROOT)} if side == "registered" else {}
        command = [sys.executable, "-c", OPENER, side, str(all_folders), str(place)]
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
            found[side] = {
                name: (json.loads((place / f"{name}.json").read_text()), load_file(place / f"{name}.safetensors"))
                for name in METHODS
            }
    finally:
        for _, process in running.values():
            process.kill()
    return found


@pytest.fixture
def answers(method: Method, all_answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """(names, tensors) of each side."""
    return {side: found[method.prefix] for side, found in all_answers.items()}


def _trunk_features(method: Method, models: dict[str, Any], name: str) -> torch.Tensor:
    """Computed here, from the model that was saved."""
    model = models["pretraining" if name == "exported" else name]
    with torch.no_grad():
        if name == "exported":
            return method.trunk(model.teacher)(_pixels()).last_hidden_state
        if name == "backbone":
            trunk = method.kind("Model")(model.config).eval()
            trunk.load_state_dict(model.state_dict())
            return trunk(_pixels()).last_hidden_state
        return (model if name == "model" else method.trunk(model))(_pixels()).last_hidden_state


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _maps(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[:, -15:].transpose(1, 2).reshape(2, 32, 5, 3)  # behind the class token, where there is one


def _code(method: Method, saved: str) -> set[str]:
    """Names of the modules that a folder holds."""
    needed = {f"{room}_{method.prefix}" for room in ("configuration", "modeling")} | {*TRUNK_CODE}
    if saved == "pretraining":
        needed |= {f"pretraining_{method.prefix}", *PRETRAINING_CODE} | method.code
    return needed


@pytest.mark.parametrize("saved", SAVED)
def test_every_folder_holds_the_code_of_its_class_and_names_the_auto_classes_that_it_serves(
    method: Method, folders: Path, saved: str
) -> None:
    code = {path.stem for path in (folders / saved).glob("*.py")}
    assert code == _code(method, saved)
    assert saved == "pretraining" or len(code) <= 8
    config = json.loads((folders / saved / "config.json").read_text())
    expected = {auto: f"modeling_{method.prefix}.{method.name}{kind}" for auto, kind in CLASSES.items()}
    del expected["AutoModelForPreTraining"]
    if saved == "pretraining":
        expected["AutoModelForPreTraining"] = f"pretraining_{method.prefix}.{method.name}ForPreTraining"
    assert config["auto_map"] == {**expected, "AutoConfig": f"configuration_{method.prefix}.{method.name}Config"}
    assert config["auto_map"] == auto_map_of(config)  # what publishing writes
    assert config["model_type"] == method.prefix


@pytest.mark.parametrize("side", ["registered", "remote"])
@pytest.mark.parametrize("saved", SAVED)
def test_every_auto_class_opens_every_folder_with_its_trunk(
    method: Method, saved: str, side: str, answers: Any, models: dict[str, Any]
) -> None:
    names, tensors = answers[side]
    home = "hf_geossl." if side == "registered" else "transformers_modules."
    expected = _trunk_features(method, models, saved)
    for auto, kind in CLASSES.items():
        if auto == "AutoModelForPreTraining" and side == "remote" and saved != "pretraining":
            assert f"{saved}/{auto}" not in names
            continue
        found_class, module, training = names[f"{saved}/{auto}"]
        assert found_class == method.name + kind
        assert module.startswith(home)
        assert training is False
        _close(tensors[f"{saved}/{auto}"], _maps(expected) if auto == "AutoBackbone" else expected)
    assert names[f"{saved}/AutoConfig"][0] == f"{method.name}Config"
    assert names[f"{saved}/AutoConfig"][1].startswith(home)
    assert names[f"{saved}/AutoConfig"][2] == 32
    assert names[f"{saved}/AutoImageProcessor"][0].startswith("SegformerImageProcessor")
    assert names[f"{saved}/AutoImageProcessor"][2] == 32


@pytest.mark.parametrize("side", ["registered", "remote"])
def test_heads_and_teacher_come_along(method: Method, side: str, answers: Any, models: dict[str, Any]) -> None:
    _, tensors = answers[side]
    with torch.no_grad():
        _close(tensors["logits"], models["classification"](_pixels()).logits)
        _close(tensors["segmentation"], models["segmentation"](_pixels()).logits)
        _close(tensors["pretraining/teacher"], method.trunk(models["pretraining"].teacher)(_pixels()).last_hidden_state)
    for saved in SAVED:
        if saved != "pretraining" and side == "registered":  # a folder without a teacher: it starts as the student
            _close(tensors[f"{saved}/teacher"], _trunk_features(method, models, saved))


@pytest.mark.parametrize("side", ["registered", "remote"])
def test_a_model_saved_again_opens_with_the_other_auto_classes(
    method: Method, side: str, answers: Any, models: dict[str, Any]
) -> None:
    names, tensors = answers[side]
    for source, first, then in (
        ("model", "AutoModelForImageClassification", ("AutoModelForSemanticSegmentation", "AutoModel", "AutoBackbone")),
        ("pretraining", "AutoModelForPreTraining", ("AutoModelForSemanticSegmentation", "AutoModelForPreTraining")),
    ):
        saved = f"{source}-{first}"
        assert set(names[f"{saved}/files"]) == {f"{module}.py" for module in _code(method, source)}
        left_out = set() if source == "pretraining" else {"AutoModelForPreTraining"}
        assert names[f"{saved}/auto_map"].keys() == {"AutoConfig", *CLASSES} - left_out
        expected = _trunk_features(method, models, source)
        for auto in then:
            assert names[f"{saved}/{auto}"][0] == method.name + CLASSES[auto]
            _close(tensors[f"{saved}/{auto}"], _maps(expected) if auto == "AutoBackbone" else expected)


@pytest.mark.parametrize("side", ["registered", "remote"])
def test_pipelines(method: Method, side: str, answers: Any, models: dict[str, Any], all_folders: Path) -> None:
    names, tensors = answers[side]
    picture = np.asarray(Image.open(all_folders / "picture.png"), dtype=np.float32)
    pixels = torch.from_numpy((picture / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
    with torch.no_grad():
        outputs = method.trunk(models["pretraining"].teacher)(pixels)
        _close(tensors["pipeline/features"], outputs.last_hidden_state)
        pooled = method.pooled(models["pretraining"], outputs.last_hidden_state)
        _close(tensors["pipeline/pooled"], pooled)
        scores = models["classification"](pixels).logits.softmax(-1)[0]
    assert dict(names["pipeline/classes"]) == pytest.approx(
        {f"LABEL_{index}": score for index, score in enumerate(scores.tolist())}, abs=1e-5
    )


def test_the_installed_package_wins_over_code_in_the_folder(method: Method, folders: Path) -> None:
    model = AutoModel.from_pretrained(folders / "pretraining", trust_remote_code=True)
    assert type(model) is method.kind("Model")


def test_new_models_from_a_configuration(method: Method) -> None:
    for auto, kind in CLASSES.items():
        model = getattr(transformers, auto).from_config(method.config(num_hidden_layers=3))
        assert type(model) is method.kind(kind)


# each of these in a process of its own, forked from one that has imported what both need and neither is about
IMPORTS = """
import json, os, sys, traceback
import datasets, numpy, PIL.Image, scipy.optimize, torch, torchvision

assert not {"transformers", "hf_geossl"} & set(sys.modules)
codes, running = json.loads(sys.argv[1]), {}
for name, code in codes.items():
    process = os.fork()
    if process == 0:
        sys.argv[1:] = json.loads(sys.argv[2])
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    running[name] = process
print(json.dumps({name: os.waitpid(process, 0)[1] for name, process in running.items()}))
"""
OPEN = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

{first}
folders = sys.argv[1:]
started = threading.Barrier({threads})


def open_folder(folder):
    started.wait(60)
    import hf_geossl
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

    return [
        type(AutoConfig.from_pretrained(folder)).__module__,
        type(AutoModel.from_pretrained(folder)).__module__,
        type(AutoModelForPreTraining.from_pretrained(folder)).__module__,
        type(hf_geossl.load_backbone(folder)).__module__,
        type(AutoImageProcessor.from_pretrained(folder)).__name__,
        type(pipeline("image-feature-extraction", model=folder).model).__module__,
    ]


with ThreadPoolExecutor({threads}) as executor:
    for found in executor.map(open_folder, folders):
        assert all(name.startswith(("hf_geossl.modeling.", "SegformerImageProcessor")) for name in found), found
"""
ORDERS = {
    "before": "import hf_geossl\nassert 'transformers' not in sys.modules",
    "after": """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline
import hf_geossl
""",
    # the modules of Auto classes one by one
    "between": """
from transformers import AutoConfig
import hf_geossl
from hf_geossl.modeling.pretraining_loca import LOCAForPreTraining
""",
    "unpickled": """
import os
import pickle
import hf_geossl
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, pickle.dumps(hf_geossl.GTSAConfig(num_hidden_layers=1)))
    os._exit(0)
os.close(write)
config = pickle.loads(open(read, "rb").read())
from transformers import AutoModel
assert type(AutoModel.from_config(config)).__module__ == "hf_geossl.modeling.modeling_gtsa"
""",
    "threads": "import transformers\nimport hf_geossl",  # not transformers itself, which several threads cannot import
}
PROCESSOR = """
import hf_geossl
from transformers import {first}
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
found = get_image_processor_class_from_name("GeometricImageProcessor").__module__
assert found == "hf_geossl.modeling.image_processing_vit", found
"""
PROCESSORS = ("SegformerImageProcessor", "ViTImageProcessor", "AutoImageProcessor")


@pytest.fixture(scope="module")
def imported(all_folders: Path) -> tuple[dict[str, int], str]:
    """Exit codes by name, and what was told."""
    folders = [str(all_folders / name / "pretraining") for name in METHODS]
    threads = {order: len(folders) if order == "threads" else 1 for order in ORDERS}
    codes = {order: OPEN.format(first=first, threads=threads[order]) for order, first in ORDERS.items()}
    codes |= {first: PROCESSOR.format(first=first) for first in PROCESSORS}
    process = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(codes), json.dumps(folders)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1]), process.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_registration_is_there_in_every_order_of_imports(order: str, imported: tuple[dict[str, int], str]) -> None:
    """In fresh processes: the package before transformers, after it, in between, in a worker's, and from threads."""
    codes, told = imported
    assert codes[order] == 0, told[-6000:]


@pytest.mark.parametrize("first", PROCESSORS)
def test_processors_are_registered_whichever_is_imported_first(
    first: str, imported: tuple[dict[str, int], str]
) -> None:
    codes, told = imported
    assert codes[first] == 0, told[-6000:]
