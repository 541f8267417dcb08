"""Pictures by key, from any kind of dataset."""

import numpy as np
import pandas as pd
import pytest

from hf_geossl.data.images import decode_image
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.images import open_images
from hf_geossl.tasks.embedding.inputs import ImageInputs
from hf_geossl.tasks.embedding.pictures import as_columns, pictures_of, places_in
from tests.helpers.images import encoded, write_folder, write_parquet, write_tars

INPUTS = ImageInputs(lambda picture: picture, 10**6)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_folder, "class_1/004.png"),
        (write_parquet, "train-00001-of-00002.parquet:0"),
        (write_tars, "shard-2.tar:004"),
    ],
)
def test_the_picture_of_a_key(tmp_path, write, name):
    images = open_images(str(write(tmp_path / "data", rows=6)), EmbeddingArguments())
    number = 3 if write is write_parquet else 4
    whole = np.asarray(decode_image(encoded(number)))
    found = dict(pictures_of(images, INPUTS, [(name, None), (name, (1, 2, 4, 6)), ("gone", None)]))
    assert np.array_equal(found[name, None], whole)
    assert np.array_equal(found[name, (1, 2, 4, 6)], whole[2:6, 1:4])
    assert len(found) == 2


def test_scenes_by_their_numbers():
    images = open_images("scenes", EmbeddingArguments(split="test", config_name="scene-32"))
    [(place, picture)] = pictures_of(images, INPUTS, [("scenes/test/7", None)])
    assert (place, picture.size) == (("scenes/test/7", None), (32, 32))


def test_places_go_through_a_table():
    places = [("a.png", (0, 1, 2, 3)), ("b.png", (4, 5, 6, 7))]
    table = pd.DataFrame([as_columns(place) | as_columns(place, "copy_of") for place in places])
    assert places_in(table) == places_in(table, "copy_of") == places
    assert places_in(pd.DataFrame([as_columns(("a", None))])) == [("a", None)]
