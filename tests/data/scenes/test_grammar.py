"""The grammar of the scene classes: probabilities, and that no ground or thing gives a class away."""

from __future__ import annotations

from collections import Counter

import pytest

from hf_geossl.data import SCENE_CLASSES, STUFF_CLASSES, THING_CLASSES
from hf_geossl.data.scenes.grammar import BACKDROP_STUFF, SCENE_GRAMMAR, STRIP_STUFF


def test_every_class_has_probabilities_that_add_up_and_known_names() -> None:
    assert tuple(SCENE_GRAMMAR) == SCENE_CLASSES
    for grammar in SCENE_GRAMMAR.values():
        for weights in (grammar.grounds, grammar.backdrops, grammar.strips):
            assert sum(weights.values()) == pytest.approx(1.0)
        assert set(grammar.grounds) <= set(STUFF_CLASSES)
        assert set(grammar.backdrops) <= {*BACKDROP_STUFF, "sea", "none"}
        assert set(grammar.strips) <= {*STRIP_STUFF, "none"}
        assert set(grammar.rates) <= set(THING_CLASSES)
    for stuff in (*STRIP_STUFF.values(), *BACKDROP_STUFF.values()):
        assert set(stuff) <= set(STUFF_CLASSES)


def test_every_ground_backdrop_and_thing_occurs_in_several_classes() -> None:
    classes: Counter[tuple[str, str]] = Counter()
    for grammar in SCENE_GRAMMAR.values():
        for part in ("grounds", "backdrops", "strips", "rates"):
            classes.update((part, name) for name in getattr(grammar, part))
    rare = {key: count for key, count in classes.items() if count < 2}
    assert rare == {("strips", "pond"): 1}  # half of the parks have none, and water is in five other classes
    assert {name for part, name in classes if part == "rates"} == set(THING_CLASSES)
