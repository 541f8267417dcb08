"""Draws a scene's description from (seed, mode, split, index), and from nothing else."""

from __future__ import annotations

import operator

import numpy as np

from hf_geossl.data.scenes.arguments import COUNT_LIMIT, check_mode, check_split
from hf_geossl.data.scenes.description import MODES, SPLITS, Scene
from hf_geossl.data.scenes.objectview import sample_object
from hf_geossl.data.scenes.sideview import sample_sideview
from hf_geossl.data.scenes.topdown import sample_topdown

_SAMPLERS = {"scene": sample_sideview, "topdown": sample_topdown, "object": sample_object}


def sample_scene(split: str, index: int, *, mode: str = "scene", seed: int = 0) -> Scene:
    """Describes one scene of the distribution; `render` draws it.

    Args:
        split (`str`): "train", "validation" or "test".
        index (`int`): number of the scene in its split, 0 to 2**31 - 2.
        mode (`str`, *optional*, defaults to `"scene"`): "scene" (seen from the side), "topdown" (seen from above) or "object" (one large object).
        seed (`int`, *optional*, defaults to 0): another seed is another draw of the whole dataset; not negative.

    Returns:
        `Scene`: equal arguments give equal scenes, in every process and on every machine.

    Raises:
        ValueError: for an unknown split or mode, or a negative seed.
        IndexError: for an index out of range.
    """
    check_split(split)
    check_mode(mode)
    index = operator.index(index)
    if not 0 <= index < COUNT_LIMIT:
        raise IndexError(f"index must be from 0 to {COUNT_LIMIT - 1}, got {index}")
    if operator.index(seed) < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    entropy = np.random.SeedSequence([MODES.index(mode), SPLITS.index(split), index, operator.index(seed)])
    return _SAMPLERS[mode](np.random.Generator(np.random.PCG64(entropy)), split, index, operator.index(seed))
