"""Scenes: the embedded procedural dataset. The generator needs numpy and Pillow only; `datasets` is imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_geossl.data.scenes.arguments import DEFAULT_COUNTS, label_names, parse_config_name
from hf_geossl.data.scenes.dataset import SceneDataset, load_scenes, sample_scene, scene_image
from hf_geossl.data.scenes.description import (
    MODES,
    SCENE_CLASSES,
    SCENES_VERSION,
    SEMANTIC_CLASSES,
    SPLITS,
    STUFF_CLASSES,
    THING_CLASSES,
    Scene,
)
from hf_geossl.data.scenes.render import RenderedScene, render

if TYPE_CHECKING:
    from hf_geossl.data.scenes.stream import stream_scenes

__all__ = [
    "DEFAULT_COUNTS",
    "MODES",
    "SCENES_VERSION",
    "SCENE_CLASSES",
    "SEMANTIC_CLASSES",
    "SPLITS",
    "STUFF_CLASSES",
    "THING_CLASSES",
    "RenderedScene",
    "Scene",
    "SceneDataset",
    "label_names",
    "load_scenes",
    "parse_config_name",
    "render",
    "sample_scene",
    "scene_image",
    "stream_scenes",
]


def __getattr__(name: str) -> Any:
    if name == "stream_scenes":
        from hf_geossl.data.scenes.stream import stream_scenes

        return stream_scenes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
