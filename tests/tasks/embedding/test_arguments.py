"""Arguments of `embed`: what makes no sense is refused, and what changes no row is no setting of the table."""

import pytest

from hf_geossl.tasks.embedding.arguments import EmbeddingArguments


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ("patch",)}, "features must be different ones of class_token, pooled, patches, got patch"),
        ({"features": ()}, "got none"),
        ({"features": ("pooled", "pooled")}, "got pooled, pooled"),
        ({"dtype": "float64"}, "dtype must be float32 or float16, got 'float64'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"tile_overlap": 4}, "means nothing without tile"),
        ({"tile": 32, "tile_overlap": 32}, "less than tile=32, got 32"),
    ],
)
def test_nonsense_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingArguments(**fields)


def test_settings_of_the_table_are_those_that_change_rows():
    base = EmbeddingArguments().of_the_table()
    assert EmbeddingArguments(num_workers=3, device="cpu", overwrite=True, revision="main").of_the_table() == base
    for fields in (
        {"split": "test"},
        {"dtype": "float16"},
        {"tile": 8},
        {"batch_size": 2},
        {"bf16": True},
        {"limit": 3},
    ):
        assert EmbeddingArguments(**fields).of_the_table() != base
