"""The grammar of the eight scene classes: what each is made of.

Every ground, backdrop and thing occurs in several classes, so that none of them gives the class away alone.
"""

from __future__ import annotations

from typing import NamedTuple

# Mean number of any thing a class does not list.
STRAY_RATE = 0.04

Weights = dict[str, float]


class SceneGrammar(NamedTuple):
    """One scene class."""

    grounds: Weights  # stuff of the ground and its probability
    backdrops: Weights  # "hills", "leaves", "houses", "sea", "island" (a sea with hills behind) or "none"
    strips: Weights  # "road", "path", "river", "pond", "field" or "none"
    rates: Weights  # mean (Poisson) number of each thing before the density factor


SCENE_GRAMMAR = {
    "meadow": SceneGrammar(
        {"grass": 0.6, "sand": 0.2, "foliage": 0.2},
        {"hills": 0.6, "leaves": 0.25, "none": 0.15},
        {"none": 0.35, "river": 0.25, "path": 0.2, "field": 0.2},
        {"animal": 2.8, "tree": 1.2, "rock": 0.9, "kite": 0.9, "person": 0.6, "house": 0.3, "boat": 0.3, "sign": 0.2},
    ),
    "beach": SceneGrammar(
        {"sand": 0.6, "grass": 0.25, "paving": 0.15},
        {"sea": 0.6, "island": 0.4},
        {"none": 0.8, "path": 0.2},
        {"person": 2.4, "kite": 1.3, "boat": 1.1, "rock": 0.8, "tree": 0.4, "animal": 0.4, "sign": 0.3, "lamp": 0.2},
    ),
    "street": SceneGrammar(
        {"paving": 0.6, "grass": 0.2, "sand": 0.2},
        {"houses": 0.7, "leaves": 0.15, "hills": 0.15},
        {"road": 0.8, "none": 0.2},
        {"car": 2.3, "person": 1.5, "lamp": 1.3, "sign": 1.3, "tree": 0.5, "house": 0.4, "animal": 0.2},
    ),
    "forest": SceneGrammar(
        {"foliage": 0.5, "grass": 0.4, "sand": 0.1},
        {"leaves": 0.75, "hills": 0.25},
        {"none": 0.5, "path": 0.25, "river": 0.25},
        {"tree": 3.9, "rock": 1.2, "animal": 1, "person": 0.4, "sign": 0.3, "house": 0.2, "boat": 0.2},
    ),
    "harbour": SceneGrammar(
        {"paving": 0.55, "sand": 0.2, "grass": 0.25},
        {"sea": 0.55, "island": 0.45},
        {"none": 0.7, "road": 0.3},
        {"boat": 2.8, "lamp": 1, "car": 0.8, "person": 1, "sign": 0.4, "house": 0.4, "rock": 0.3, "kite": 0.2},
    ),
    "village": SceneGrammar(
        {"grass": 0.5, "paving": 0.25, "sand": 0.25},
        {"hills": 0.5, "leaves": 0.2, "houses": 0.3},
        {"road": 0.4, "river": 0.2, "path": 0.2, "none": 0.2},
        {"house": 2.6, "tree": 1, "person": 0.8, "animal": 0.7, "car": 0.6, "lamp": 0.4, "sign": 0.3, "boat": 0.2},
    ),
    "park": SceneGrammar(
        {"grass": 0.65, "paving": 0.2, "foliage": 0.15},
        {"leaves": 0.5, "houses": 0.3, "hills": 0.2},
        {"path": 0.4, "pond": 0.35, "none": 0.25},
        {"tree": 1.9, "person": 1.6, "lamp": 1.1, "kite": 0.8, "sign": 0.5, "animal": 0.6, "boat": 0.3, "rock": 0.3},
    ),
    "desert": SceneGrammar(
        {"sand": 0.6, "paving": 0.2, "grass": 0.2},
        {"hills": 0.75, "none": 0.25},
        {"none": 0.55, "road": 0.3, "field": 0.15},
        {"rock": 3, "animal": 1, "car": 0.7, "sign": 0.6, "tree": 0.5, "person": 0.4, "house": 0.3, "kite": 0.2},
    ),
}

# What a strip may be made of.
STRIP_STUFF: dict[str, tuple[str, ...]] = {
    "road": ("paving",),
    "path": ("sand", "paving"),
    "river": ("water",),
    "pond": ("water",),
    "field": ("grass", "sand", "foliage"),
}
BACKDROP_STUFF: dict[str, tuple[str, ...]] = {
    "hills": ("grass", "sand", "foliage"),
    "island": ("grass", "sand", "foliage"),
    "leaves": ("foliage",),
    "houses": ("wall",),
}
