"""The numbers at the top of a card stand beside what trivial models reach, and say whether they are better."""

from hf_geossl.hub.headlines import headlines, lower_is_better
from hf_geossl.hub.results import Result

FLOORS = (("chance", 0.25), ("random weights", 0.54), ("thumbnail", 0.68))


def test_a_number_is_bold_where_its_interval_lies_beyond_all_floors() -> None:
    better, same = (
        Result("rotation", "accuracy", 0.77, interval=interval, floors=FLOORS)
        for interval in ((0.74, 0.8), (0.67, 0.85))
    )
    row = headlines([better], {})[0]
    assert row.question == "Which way up an image is"
    assert row.measured.replace("\N{NO-BREAK SPACE}", " ") == "**77 %** (74 to 80)"
    assert {name: text[:2] for name, text in row.floors.items()} == {
        "guessing": "25",
        "random weights": "54",
        "thumbnail": "68",
    }
    assert row.better
    row = headlines([same], {})[0]
    assert row.measured.replace("\N{NO-BREAK SPACE}", " ") == "77 % (67 to 85)"
    assert not row.better
    assert not headlines([Result("rotation", "accuracy", 0.77, floors=FLOORS)], {})[
        0
    ].better  # by how much is not known


def test_of_an_error_less_is_better_and_of_several_guesses_the_best_counts() -> None:
    floors = (("constant", 0.5), ("other constant", 0.4), ("random weights", 0.3))
    row = headlines([Result("depth", "abs_rel", 0.2, interval=(0.1, 0.29), floors=floors)], {})[0]
    assert row.question == "How far away each pixel is, linear map (mean error as a share of the depth, less is better)"
    assert row.floors == {"guessing": "0.4", "random weights": "0.3"}
    assert row.better
    row = headlines([Result("depth", "abs_rel", 0.2, interval=(0.1, 0.31), floors=floors)], {})[0]
    assert not row.better
    assert all(map(lower_is_better, ["rmse", "abs_rel", "mean_corner_error", "mean_patch_distance"]))
    assert not any(map(lower_is_better, ["accuracy", "mean_iou", "r2", "delta1", "pckh", "j_and_f_mean", "ap50"]))


def test_a_task_has_one_row_and_instruments_stand_in_where_nothing_was_evaluated() -> None:
    entry = {"measured": 0.5, "interval": [0.4, 0.6], "floors": {"chance": 0.25, "thumbnail": 0.3}}
    record = {"instruments": {"images": 256, "step": 8, "values": {"quarter_turn_accuracy": entry}}}
    assert [row.question for row in headlines([], record)] == ["Which way up an image is"]
    assert headlines([], record)[0].better
    results = [
        Result("knn", "accuracy", 0.2),
        Result("knn", "accuracy_k10", 0.3),
        Result("unheard_of", "score", 3.0),
        Result("unheard_of", "floored", 1234.5, floors=(("chance", 1.0),)),
    ]
    assert [(row.question, row.measured) for row in headlines(results, record)] == [
        ("Class of an image, from similar ones", "20\N{NO-BREAK SPACE}%"),
        ("unheard of (floored)", "1.23e+03"),
    ]
    assert headlines([], {}) == []
