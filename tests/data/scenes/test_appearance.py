"""Colours and light: weak cues, within the ranges of the design."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest

from hf_geossl.data import STUFF_CLASSES, THING_CLASSES
from hf_geossl.data.scenes.appearance import (
    hsv,
    sample_light,
    sample_surface,
    sample_thing_palette,
    sample_tile,
    scaled,
)
from hf_geossl.data.scenes.shapes import Role
from hf_geossl.data.scenes.textures import tile_index


def test_hues_are_those_of_the_standard_library() -> None:
    for hue in np.linspace(0, 0.99, 34):
        for saturation in (0.0, 0.3, 1.0):
            expected = colorsys.hsv_to_rgb(hue, saturation, 0.8)
            assert hsv(hue, saturation, 0.8) == pytest.approx(expected, abs=1e-9)
            assert hsv(hue - 2, saturation, 0.8) == pytest.approx(expected, abs=1e-9)  # whole turns change nothing
    assert scaled((0.5, 0.8, 0.1), 1.5) == pytest.approx((0.75, 1.0, 0.15))


def test_a_class_wears_its_own_hue_in_three_cases_of_five_and_a_tenth_by_chance() -> None:
    rng = np.random.default_rng(0)
    hues = [colorsys.rgb_to_hsv(*sample_surface(rng, "water", 32.0, 0.0).color)[0] for _ in range(4000)]
    own = np.mean([0.49 <= hue <= 0.59 for hue in hues])
    # 0.6 + 0.4 * 0.1, and five standard deviations of the share
    assert own == pytest.approx(0.64, abs=5 * math.sqrt(0.64 * 0.36 / 4000))


def test_surfaces_stay_within_the_ranges_of_the_design() -> None:
    rng = np.random.default_rng(1)
    for stuff in STUFF_CLASSES:
        for _ in range(200):
            surface = sample_surface(rng, stuff, 10.0, 0.5)
            assert STUFF_CLASSES[surface.stuff] == stuff
            assert 0.12 <= surface.contrast <= 0.4
            assert 10 / math.sqrt(2) <= surface.scale <= 10 * math.sqrt(2)
            assert all(0 <= channel <= 1 for channel in surface.color)
            assert surface.turn == 0.5


def test_one_tile_in_six_is_of_any_family() -> None:
    rng = np.random.default_rng(2)
    drawn = np.array([sample_tile(rng, ("brick",)) for _ in range(6000)])
    first = tile_index("brick", 0)
    own = np.mean((drawn >= first) & (drawn < first + 12))
    share = 5 / 6 + 1 / 6 / 9
    assert own == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 6000))
    assert (drawn.min(), drawn.max()) == (0, 107)


def test_a_palette_has_a_color_for_every_role_and_shade_is_the_main_one_darker() -> None:
    rng = np.random.default_rng(3)
    for thing in THING_CLASSES:
        palette = sample_thing_palette(rng, thing)
        assert set(palette) == set(Role)
        assert palette[Role.SHADED] == pytest.approx([0.72 * channel for channel in palette[Role.MAIN]])
        assert max(palette[Role.DARK]) < 0.26 < 0.84 < max(palette[Role.LIGHT])


def test_light_is_that_of_the_design() -> None:
    rng = np.random.default_rng(4)
    lights = [sample_light(rng, math.pi / 2, 40.0) for _ in range(2000)]
    assert all(light.direction == pytest.approx((0.0, -1.0), abs=1e-12) for light in lights)  # up in the image
    gains = np.array([light.gain for light in lights])
    assert gains.min() >= 0.7 * 0.94
    assert gains.max() <= 1.15 * 1.06
    assert (gains.max(axis=1) / gains.min(axis=1)).max() <= 1.06 / 0.94
    foggy = np.mean([light.fog > 0 for light in lights])
    assert foggy == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2000))
    assert max(light.fog for light in lights) <= 1.5 / 40
    assert 0.3 <= min(light.blur for light in lights) <= max(light.blur for light in lights) <= 0.8
    assert 0 <= min(light.noise for light in lights) <= max(light.noise for light in lights) <= 0.035
    assert not any(sample_light(rng, 0.0, 0.0).fog for _ in range(50))
