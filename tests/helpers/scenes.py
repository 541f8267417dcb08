"""Scenes for the tests of the embedded dataset."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from hf_geossl.data import RenderedScene, Scene, render, sample_scene


def fingerprint(rendered: RenderedScene) -> str:
    """Half a hash of image and truth."""
    digest = hashlib.sha256()
    for array in (rendered.image, rendered.semantic, rendered.instance, rendered.depth):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def many(mode: str, count: int, size: int = 96) -> list[tuple[Scene, RenderedScene]]:
    """The first scenes of a mode, with their pictures."""
    scenes = [sample_scene("train", index, mode=mode) for index in range(count)]
    return [(scene, render(scene, size)) for scene in scenes]


def still(scene: Scene) -> Scene:
    """The scene in clear air, evenly lit, without noise."""
    return replace(scene, light=replace(scene.light, fog=0.0, shading=0.0, noise=0.0, gain=(1.0, 1.0, 1.0)))
