"""Truth that is not there: the sentence ends with what gives it."""

from datasets import Dataset

from hf_geossl.evaluation.reading.lacking import mend_of


def test_columns_of_zeros_and_ones_are_named_as_classes() -> None:
    columns = {"image": ["a", "b"], "cat": ["1", "0"], "dog": ["0", "1"], "year": [2001, 1]}
    sentence = mend_of("label", Dataset.from_dict(columns), "train.csv")
    assert sentence.startswith("the columns cat, dog hold 0 and 1, one for each class, and one column")
    assert mend_of("depth", Dataset.from_dict(columns), "train.csv").startswith("name the right one by --depth_column")
    del columns["dog"]
    assert "--label_column" in mend_of("label", Dataset.from_dict(columns), "train.csv")


def test_boxes_beside_packed_images_want_a_folder() -> None:
    rows = Dataset.from_dict({"image": ["a"]})
    assert mend_of("objects", rows, "yolo.zip").endswith(
        "unpack the archive to a folder, in which files of boxes are read too"
    )
    assert mend_of("label", rows, "yolo.zip").endswith("choose other data")
    assert mend_of(None, rows, "a") == "choose other data"
