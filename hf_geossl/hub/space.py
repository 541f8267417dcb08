"""The files of a Space: the demo of a model, with the model, sample pictures and this library beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from hf_geossl.data import sample_scene
from hf_geossl.data.scenes import render
from hf_geossl.hub.redaction import redact, redact_values
from hf_geossl.hub.run_folder import find_model, is_pretraining, processor_files
from hf_geossl.methods import METHODS
from hf_geossl.modeling.image_format import ImageFormat

GRADIO_VERSION = "6.31.0"  # the oldest that the demo has been tried with
PYTHON_VERSION = "3.11"
# with the lower bounds of setup.py (a test compares), which an editable installation may have forgotten
REQUIREMENTS = (
    f"gradio>={GRADIO_VERSION},<7",
    "huggingface_hub>=1.31,<3",
    "jinja2>=3.1",
    "msgpack>=1.0.5",
    "numpy>=2.0",
    "pillow>=10.1",
    "pyyaml>=6",
    "tenacity>=8.2.3",
    "torch>=2.11,<3",
    "torchvision>=0.26",
    "transformers>=5.17,<6",
    "wrapt>=1.17",
)
# for models whose images are not RGB of 8 bits: TIFF of any bands, 16 bits, DICOM
IMAGE_REQUIREMENTS = ("imagecodecs>=2024.6.1", "pydicom>=3.0", "tifffile>=2024.7.2")
_SOURCES = (".py", ".pyi", ".typed", ".yaml", ".jinja")
_OF_THE_MACHINE = ("_name_or_path", "auto_map")  # of a configuration; the classes come with the library

_APP = '''"""The demo of the model in `model`, with the pictures in `samples`; `python app.py` starts it on any machine."""

from pathlib import Path

from hf_geossl.demo import launch_demo

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    launch_demo(HERE / "model", samples=HERE / "samples", host=None)  # a Space says where to listen
'''

# for models whose images are not such as scenes are
_APP_WITHOUT_SAMPLES = '''"""The demo of the model in `model`; `python app.py` starts it on any machine.

It begins with the images in a folder `samples`, where there is one: two or more, of the kind that the model takes.
"""

from pathlib import Path

from hf_geossl.demo import launch_demo

HERE = Path(__file__).resolve().parent
SAMPLES = HERE / "samples"

if __name__ == "__main__":
    launch_demo(HERE / "model", samples=SAMPLES if SAMPLES.is_dir() else None, host=None)  # a Space says where to listen
'''

_TAKES = """It takes images of {described}, and shows them in false colours. There are no sample images of this kind: put two or more
into a folder `samples`, and the page begins with them, and has its tab of nearest neighbours.

"""

_README = """# {title}

What {method} sees in pictures, clicked in a browser: features of patches, the patches of another picture that correspond to
them, attention, nearest neighbours{heads}. The model is [{repo_id}](https://huggingface.co/{repo_id}).

{takes}Nothing that is uploaded is kept, and nothing is reported anywhere. To run it on your own machine:

```bash
pip install -r requirements.txt && python app.py
```

`hf_geossl/` is the library that the model was trained with (Apache-2.0).
"""

SAMPLE_SIDE = 448  # of a picture on the page
_SCENES = [
    ("scene", 3),
    ("scene", 5),
    ("scene", 8),
    ("scene", 12),
    ("topdown", 1),
    ("topdown", 4),
    ("object", 2),
    ("object", 7),
]


def scene_pictures(side: int = SAMPLE_SIDE) -> list[Image.Image]:
    """Eight scenes of the embedded dataset's test split, which pretraining does not see."""
    return [Image.fromarray(render(sample_scene("test", index, mode=mode), side).image) for mode, index in _SCENES]


def write_space(
    folder: str | Path,
    output: str | Path,
    *,
    repo_id: str,
    title: str | None = None,
    license: str | None = None,
) -> Path:
    """Writes the files of a Gradio Space that shows a model. Equal input gives equal files, byte for byte.

    Args:
        folder (`str` or `Path`): What `hf_geossl.demo.build_demo` opens. Weights go into the Space as they are:
            of a whole pretraining model where there is one, else of the trunk.
        output (`str` or `Path`): Where to; a new or empty folder.
        repo_id (`str`): The model's repository on the Hub, `"user/name"`.
        title (`str`, *optional*): Of the Space; the method's name by default.
        license (`str`, *optional*): Its licence, as the Hub names it; none is stated by default.

    Returns:
        `Path`: `output`, with README.md, app.py, requirements.txt, model/, samples/ (scenes, for models of 8-bit RGB) and
        hf_geossl/.

    Raises:
        ValueError: If there is no model of this library, its weights are not safetensors, nothing says what its images
            are, `repo_id` is no name of a repository, or `output` holds something.
    """
    validate_repo_id(repo_id)
    source, config, _ = find_model(Path(folder))
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"output must be a new or empty folder, got {str(target)!r}, which holds something")
    weights = sorted(source.glob("model*.safetensors*"))
    if not any(path.suffix == ".safetensors" for path in weights):
        raise ValueError(f"{str(source)!r} holds no model.safetensors; save the model with save_pretrained first")
    described = _image_format(config, source.name)
    method = METHODS[config["model_type"]]
    title = " ".join((title or f"{method.title} demo").split())
    target.mkdir(parents=True, exist_ok=True)
    _write_model([*weights, *processor_files(source)[:1]], target / "model", config)
    requirements, app, takes = list(REQUIREMENTS), _APP, ""
    if described.is_rgb8:
        _write_samples(target / "samples")
    else:
        requirements, app = [*requirements, *IMAGE_REQUIREMENTS], _APP_WITHOUT_SAMPLES
        takes = _TAKES.format(described=described.describe())
    _write_library(target / "hf_geossl")
    (target / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    (target / "app.py").write_text(app, encoding="utf-8")
    heads = f", and {method.head_shows}" if method.head_shows and is_pretraining(config) else ""
    text = _README.format(title=title, method=method.title, heads=heads, repo_id=repo_id, takes=takes)
    (target / "README.md").write_text(f"---\n{_metadata(title, repo_id, license)}\n---\n\n{text}", encoding="utf-8")
    return target


def _image_format(config: dict[str, Any], name: str) -> ImageFormat:
    """What the images of a model are, as its config.json says."""
    stated, channels = config.get("image_format"), config.get("num_channels", 3)
    if stated is None and channels != 3:
        raise ValueError(
            f"{name} takes {channels} channels, and nothing says what they are: give its config.json an image_format "
            "(names, type, value range, mean, deviation of each channel)"
        )
    return ImageFormat.from_dict(stated or {})


def _metadata(title: str, repo_id: str, license: str | None) -> str:
    """What the Hub reads of a Space, in YAML."""
    return SpaceCardData(
        title=title,
        emoji="🧭",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=PYTHON_VERSION,
        app_file="app.py",
        models=[repo_id],
        license=license,
        pinned=False,
    ).to_yaml(line_break="\n")


def _write_model(files: list[Path], target: Path, config: dict[str, Any]) -> None:
    target.mkdir()
    for path in files:
        if path.suffix == ".safetensors":
            shutil.copyfile(path, target / path.name)
        else:
            _write_json(target / path.name, json.loads(path.read_text(encoding="utf-8")))
    _write_json(target / "config.json", config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    labels = ("id2label", "label2id")  # texts that the model needs as they are
    shared = {
        redact(name): value if name in labels else redact_values(value)
        for name, value in content.items()
        if name not in _OF_THE_MACHINE
    }
    path.write_text(json.dumps(shared, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_samples(target: Path) -> None:
    target.mkdir()
    for index, picture in enumerate(scene_pictures(), start=1):
        picture.save(target / f"{index}.jpg", quality=90)


def _write_library(target: Path) -> None:
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix in _SOURCES:
            place = target / path.relative_to(package)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
