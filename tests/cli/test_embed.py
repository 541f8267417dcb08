"""`geossl embed`: what is printed, and what is refused in one sentence."""

import pyarrow.parquet as pq
import pytest

from hf_geossl.cli.main import main
from tests.helpers.embedding_models import own_folder
from tests.helpers.images import write_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(own_folder(tmp_path_factory.mktemp("model")))


def test_says_how_many_and_what_is_broken(tmp_path, model, capsys):
    data = write_folder(tmp_path / "data", rows=6)
    (data / "class_0/000.png").write_bytes(b"")
    out = tmp_path / "out.parquet"
    words = ["embed", model, str(data), str(out), "--num-workers", "0"]
    assert main([*words, "--dtype", "float16", "--columns", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(
        f"  geossl embed {model} {data} {out} --num-workers 0 --dtype float16 --columns none --duplicates"
    )
    assert lines[:-2] == [
        f"1 of 6 images broken and left out, such as class_0/000.png: the file is empty; all of them: {tmp_path}/out.broken.csv",
        f"5 rows of 6 images: {out}",
    ]
    assert pq.read_table(out).column_names == ["key", "height", "width", "pooled", "thumbnail"]
    assert main([*words, "--dtype", "float16", "--columns", "none"]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert main(words) == 2
    assert 'was made with dtype "float16" (now "float32")' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all", "DATA", "OUT"], "there is no file or folder nowhere/at/all"),
        (["MODEL", "/nowhere", "OUT"], "there is no file or folder /nowhere"),
        (["MODEL", "DATA", "OUT", "--features", "cls"], "there is no 'cls'; valid are class_token, patches, pooled"),
        (["MODEL", "DATA", "OUT", "--tile_overlap", "3"], "means nothing without tile"),
        (["MODEL", "DATA", "OUT", "--batchsize", "3"], "unknown argument --batchsize; did you mean '--batch_size'?"),
        (["MODEL", "DATA", "OUT", "--image_size", "30"], "do not divide into"),
        (["MODEL", "DATA", "OUT", "--split", "test"], "test"),
        (["MODEL", "DATA", "OUT", "--columns", "depth"], "has no column 'depth' to carry along; its columns are label"),
        (["MODEL", "DATA", "OUT", "--neighbours", "EMPTY"], "takes files of images, and there is no file"),
        (["MODEL", "DATA", "OUT", "--neighbours", __file__], "cannot be used: not an image of a known format"),
        (["MODEL", "EMPTY", "OUT"], "holds no files"),
        (["MODEL", "DATA", "/proc/out.parquet"], "/proc"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path, model, capsys, words, message):
    (tmp_path / "empty").mkdir()
    places = {"MODEL": model, "OUT": str(tmp_path / "o.parquet"), "EMPTY": str(tmp_path / "empty")}
    places["DATA"] = str(write_folder(tmp_path / "data", rows=3))
    assert main(["embed", *(places.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("geossl: ")
    assert not (tmp_path / "o.parquet.parts").exists()
