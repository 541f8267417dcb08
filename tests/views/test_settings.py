"""Settings: ranges, flat keywords for groups, and the messages about wrong ones."""

import dataclasses
import re
from dataclasses import dataclass

import pytest

from hf_geossl.views.settings import Settings, flat_fields, group, nest, setting, sort_settings


@dataclass(frozen=True)
class Paint(Settings):
    strength: float = setting(0.5, "How strong.", low=0, high=1)
    layers: int = setting(2, "How many.", low=1)
    pressure: float = setting(3.0, "How hard.", above=0)
    width: tuple[float, float] = setting((0.1, 2.0), "How wide.", above=0, high=4)
    drops: tuple[float, float] = setting((0.0, 2.0), "How wet.", low=0)
    brush: str | None = setting("flat", "Which brush.", words=("flat", "round", "fan", None))
    ground: str = setting("oil", "On what.", words=("oil", "chalk"), flat=False)
    limit: float | None = setting(None, "At most.", low=0)


@dataclass(frozen=True)
class Picture(Settings):
    title: str = setting("none", "What it shows.")
    paint: Paint = group(Paint())
    frame: Paint = group(Paint(layers=5), {"frame_layers": "layers"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": 1.5}, "strength must lie in [0, 1], got 1.5"),
        ({"strength": float("nan")}, "strength must lie in [0, 1], got nan"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"layers": float("inf")}, "layers must be at least 1, got inf"),
        ({"pressure": 0}, "pressure must be above 0, got 0"),
        ({"limit": -1}, "limit must be 0 or more, got -1"),
        ({"width": (0, 1)}, "width must be (smallest, largest) with 0 < smallest <= largest <= 4, got (0, 1)"),
        ({"width": (2, 1)}, "width must be (smallest, largest)"),
        ({"width": (1, 5)}, "width must be (smallest, largest)"),
        ({"width": (1, 1, 1)}, "width must be (smallest, largest)"),
        ({"drops": (-1, 1)}, "drops must be (smallest, largest) with 0 <= smallest <= largest, got (-1, 1)"),
        ({"brush": "sponge"}, "brush must be one of 'flat', 'round', 'fan', got 'sponge'"),
        ({"ground": None}, "ground must be 'oil' or 'chalk', got None"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Paint(**wrong)


def test_values_at_the_bounds_are_valid_and_lists_become_tuples():
    paint = Paint(strength=1, layers=1, pressure=1e-9, width=[4, 4], drops=(0, 0), brush=None, limit=0)
    assert paint.width == (4, 4)
    assert hash(paint) == hash(dataclasses.replace(paint, width=(4.0, 4.0)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        paint.layers = 3


def test_flat_fields_say_type_default_help_and_place():
    flat = flat_fields(Picture, optional=["strength"])
    assert list(flat) == [
        *("title", "strength", "layers", "pressure", "width", "drops", "brush", "limit"),
        "frame_layers",
    ]
    assert (flat["layers"].type, flat["layers"].default, flat["layers"].metadata["help"]) == (int, 2, "How many.")
    assert (flat["strength"].type, flat["strength"].default) == (float | None, None)
    assert (flat["frame_layers"].name, flat["frame_layers"].default) == ("frame_layers", 5)
    places = {name: entry.metadata["place"] for name, entry in flat.items()}
    assert places["title"] == (None, "title")
    assert places["width"] == ("paint", "width")
    assert places["frame_layers"] == ("frame", "layers")


def test_flat_settings_go_into_their_groups_and_win_over_them():
    flat = flat_fields(Picture)
    given, groups = sort_settings(
        Picture, flat, ("sea", 0.25), {"layers": 3, "limit": None, "frame_layers": 7, "paint": Paint(brush="fan")}
    )
    assert given == {"title": "sea", "strength": 0.25, "layers": 3, "frame_layers": 7}
    nested = nest(Picture, flat, given, groups)
    assert Picture(**nested) == Picture("sea", Paint(0.25, 3, brush="fan"), Paint(layers=7))
    assert Picture(**nest(Picture, flat, {}, {})) == Picture()


def test_unknown_doubled_and_too_many_settings_are_refused():
    flat = flat_fields(Picture)
    with pytest.raises(TypeError, match="Picture has no setting 'layer'; did you mean 'layers'?"):
        sort_settings(Picture, flat, (), {"layer": 3})
    with pytest.raises(TypeError, match="Picture has no setting 'xyz'; valid are title, strength, "):
        sort_settings(Picture, flat, (), {"xyz": 3})
    with pytest.raises(TypeError, match="has no setting 'ground'"):  # it is not flat
        sort_settings(Picture, flat, (), {"ground": "chalk"})
    with pytest.raises(TypeError, match="multiple values for argument 'title'"):
        sort_settings(Picture, flat, ("sea",), {"title": "land"})
    with pytest.raises(TypeError, match="too many positional arguments"):
        sort_settings(Picture, flat, tuple(range(20)), {})
