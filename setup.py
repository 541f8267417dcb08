"""Packaging of hf_geossl; tool settings are in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

VERSION = runpy.run_path(str(Path(__file__).with_name("hf_geossl") / "version.py"))["__version__"]

EVAL = [
    "evaluate>=0.4.6,<1",
    "faster-coco-eval>=1.8",
    "matplotlib>=3.9",
    "scikit-learn>=1.5",
    "scipy>=1.13",
]
IMAGES = ["imagecodecs>=2024.6.1", "pydicom>=3.0", "tifffile>=2024.7.2"]  # TIFF of any layout, 16 bits, DICOM
NOTEBOOKS = [*EVAL, *IMAGES, "ipykernel>=6.29", "ipywidgets>=8.1", "scikit-image>=0.22"]  # those of examples/
TEST = [
    *NOTEBOOKS,
    "faiss-cpu>=1.15",
    "lightly>=1.6",
    "onnx>=1.19",
    "onnxruntime>=1.23",
    "onnxscript>=0.5",  # torch's own exporter of ONNX
    "nbclient>=0.10",
    "peft>=0.17",
    "pycocotools>=2.0.11",  # what the metrics are compared with, and torchmetrics
    "pytest>=8",
    "pytest-xdist>=3.6",
    "timm>=1.0",
    "torchdata>=0.11",
    "torchmetrics>=1.9",
]
# what the pages of docs/ name and nothing here imports: an environment of its own runs those blocks
PAGES = ["mlflow>=3.17", "tensorboard>=2.21", "torchao>=0.18", "trackio>=0.43", "wandb>=0.31"]
DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1.0,<2"]  # the site: mkdocs build --strict
SPACE = ["gradio>=6.31,<7"]  # wants Pillow < 13, which rounds otherwise than the golden pixels: not among the tests

setup(
    name="hf_geossl",
    version=VERSION,
    description="Self-supervised vision transformers that keep geometry (GTSA, LOCA, EquiCoherent) for the Hugging Face stack",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["hf_geossl", "hf_geossl.*"]),
    package_data={
        "hf_geossl": [
            "__init__.pyi",
            "conversion/__init__.pyi",
            "py.typed",
            "cli/*.json",
            "training/accelerate/*.yaml",
            "training/recipes/*.yaml",
            "evaluation/*.jinja",
            "hub/*.jinja",
        ]
    },
    # private names of a library are used: then it has a bound above, at its next major version
    install_requires=[
        "torch>=2.11,<3",
        "torchvision>=0.26",
        "transformers>=5.17,<6",
        "huggingface_hub>=1.31,<3",
        "datasets>=5.2,<6",
        "accelerate>=1.10,<2",
        "filelock>=3.10",  # as huggingface_hub asks for
        "numpy>=2.0",  # as pyarrow, which datasets brings, asks for
        "pillow>=10.1",
        "pyyaml>=6",
        "jinja2>=3.1",
        "msgpack>=1.0.5",
        "tenacity>=8.2.3",
        "wrapt>=1.17",
    ],
    extras_require={
        "test": TEST,
        # bitsandbytes, for the 8-bit optimizers, is not among the tests: where it is, peft imports it, and every process of
        # a test takes two seconds more to start
        "dev": [*TEST, "bitsandbytes>=0.49", "ruff>=0.17,<0.18", "mypy>=2,<3", "types-PyYAML"],
        "eval": EVAL,
        "docs": DOCS,
        "images": IMAGES,
        "notebooks": NOTEBOOKS,
        "space": SPACE,
        "pages": [*PAGES, *SPACE],
        "demo-test": [*SPACE, "playwright>=1.50"],
        "timm": ["timm>=1.0"],
    },
    entry_points={"console_scripts": ["geossl=hf_geossl.cli:main"]},
)
