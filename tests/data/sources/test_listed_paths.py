"""Paths of tables that are written for another place."""

from pathlib import Path

import pytest

from hf_geossl.data.sources.listed_paths import Rule, find_rule, placed
from hf_geossl.data.wording import Place


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("im/a/{}.jpg", Rule()),
        ("{}.jpg", Rule(0, "../beside", "")),
        ("a/{}", Rule(0, "im", ".jpg")),
        ("/mnt/x/im/a/{}.jpg", Rule(2)),
        ("C:/x/a/{}.jpg", Rule(2, "im")),
        ("nowhere/{}.jpeg", None),
    ],
)
def test_the_first_rule_that_leads_to_most_files(written: str, rule: Rule | None, tmp_path: Path) -> None:
    """Some are missing; the table lies in the folder "table"."""
    for number in range(7):
        path = tmp_path / "table" / "im" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if rule and rule.folder == "../beside":
            (tmp_path / "beside").mkdir(exist_ok=True)
            (tmp_path / "beside" / f"{number}.jpg").touch()
    names = [written.format(number) for number in range(10)]
    found = find_rule(names, str(tmp_path / "table"))
    assert found == rule
    if found:
        assert (tmp_path / "table" / found.apply(names[6])).is_file()


@pytest.mark.parametrize(
    ("table", "folder"), [("instances_val2017.json", "../val2017"), ("train.json", "../train2017"), ("a", "../test")]
)
def test_the_folder_of_the_split_in_the_name_of_the_table_comes_first(table: str, folder: str, tmp_path: Path) -> None:
    for split in ("test", "train2017", "val2017"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0.jpg").touch()
    (tmp_path / "annotations").mkdir()
    assert find_rule(["0.jpg"], str(tmp_path / "annotations"), table) == Rule(0, folder)


def test_addresses_of_the_net_are_not_taken_as_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").touch()
    place = Place(str(tmp_path / "list.txt"))
    with pytest.raises(
        FileNotFoundError, match="list.txt are addresses, such as https://x.org/b.jpg, and images are read from"
    ):
        placed(["https://x.org/b.jpg"], place)
    assert placed(["a.jpg", "s3:/bucket/b.jpg"], place) == ["a.jpg", "s3:/bucket/b.jpg"]
    assert "1 path is an address and cannot be read; images are read from files: download them" in caplog.text
