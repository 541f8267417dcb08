"""Which folders are called after splits, and which merely hold such a word."""

import pytest

from hf_geossl.data.sources.split_names import split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAINING train2017 train_images images_train train-images imagesTr trainset training_set train_2",
        ),
        ("validation", "val valid validation dev val2017 val_images imagesVa images-val VAL validation_set"),
        ("test", "test testing eval evaluation test2014 test_images imagesTs labels_ts testset"),
        (
            None,
            "train_station crash-test contest trains validity devices evaluate testimony cat images 2017 untrained tr ts strips images_trash",
        ),
    ],
)
def test_folders_called_after_splits(split: str | None, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)
