"""Reports: the table and the page hold the numbers of the files, mark only what is sure, and ask nothing of other hosts."""

import base64
import html
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_geossl.evaluation.report import (
    are_comparable,
    compare,
    html_page,
    markdown_table,
    read_measured,
    terminal_table,
    write_report,
)
from hf_geossl.evaluation.settings import QUICK_MEANING

ABOUT = {"dataset": "scenes", "split": "test", "train_split": "train", "images": 200, "limit": 200, "seed": 0}


def write(folder: Path, name: str, results: dict[str, Any], **about: Any) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**results, "about": {"model": name, **ABOUT, **about}}))
    return file


def knn(accuracy: float, low: float, high: float, **further: Any) -> dict[str, Any]:
    floors = {"accuracy": {"most frequent class": 0.125, "random weights": 0.21}}
    return {"accuracy": accuracy, "intervals": {"accuracy": [low, high]}, "details": {"floors": floors}, **further}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two models that surely differ in k-NN, and surely do not in depth."""
    return [
        write(
            tmp_path,
            "gtsa",
            {
                "knn": knn(0.71, 0.68, 0.74, accuracy_k10=0.7),
                "depth": {"rmse": 12.345, "delta1": 0.5, "intervals": {"rmse": [11.0, 13.0], "delta1": [0.4, 0.6]}},
            },
        ),
        write(
            tmp_path,
            "loca",
            {
                "knn": knn(0.64, 0.61, 0.67),
                "depth": {"rmse": 12.9, "intervals": {"rmse": [12.0, 14.0]}},
                "rotation": {"accuracy": 0.9, "intervals": {}},
            },
            failed={"position": "gtsa | has no <position> head"},
        ),
    ]


def test_the_table_holds_every_number(files: list[Path]) -> None:
    lines = markdown_table(read_measured(files)).splitlines()
    assert lines[:9] == [
        "| task | metric | gtsa | loca |",
        "|---|---|---|---|",
        "| knn | accuracy | **0.710** (0.680 to 0.740) | 0.640 (0.610 to 0.670) |",
        "| knn | accuracy k10 | 0.700 |  |",
        "| depth | rmse | 12.35 (11 to 13) | 12.9 (12 to 14) |",
        "| depth | delta1 | 0.500 (0.400 to 0.600) |  |",
        "| rotation | accuracy |  | 0.900 |",
        "",
        "position of loca was not measured: gtsa &#124; has no &lt;position&gt; head",
    ]


def test_only_what_is_sure_is_marked(tmp_path: Path) -> None:
    def best(*rows: tuple[float, float, float], metric: str = "accuracy", **about: Any) -> list[bool]:
        files = [
            write(
                tmp_path, f"m{index}", {"t": {metric: value, "intervals": {metric: [low, high]}}},
                **(about if index else {}),
            )
            for index, (value, low, high) in enumerate(rows)
        ]  # fmt: skip
        return [number.best for number in compare(read_measured(files), "t")[metric]]

    assert best((0.5, 0.4, 0.6), (0.8, 0.7, 0.9)) == [False, True]
    assert best((0.5, 0.4, 0.6), (0.8, 0.6, 0.9)) == [False, False]  # they touch
    assert best((0.5, 0.4, 0.6), (0.8, 0.7, 0.9), (0.81, 0.75, 0.9)) == [False] * 3
    assert best((0.5, 0.4, 0.6), (0.8, 0.7, 0.9), (0.1, 0.0, 0.2)) == [False, True, False]
    assert best((5, 4, 6), (8, 7, 9), metric="mean_corner_error") == [True, False]
    assert best((0.5, 0.4, 0.6)) == [False]
    for other in ({"images": 100}, {"dataset": "photos"}, {"split": "validation"}, {"limit": 100}):
        assert best((0.5, 0.4, 0.6), (0.8, 0.7, 0.9), **other) == [False, False]
    assert best((0.5, 0.4, 0.6), (0.8, 0.7, 0.9), image_size=64) == [False, True]


def test_models_measured_with_other_settings_are_not_ranked(tmp_path: Path) -> None:
    def page(steps: int) -> str:
        entries = [knn(0.7, 0.68, 0.74, settings={"steps": 10}), knn(0.6, 0.58, 0.62, settings={"steps": steps})]
        return markdown_table(read_measured([write(tmp_path, f"m{i}", {"knn": e}) for i, e in enumerate(entries)]))

    assert "**" in page(10)
    assert "**" not in page(20)


def test_a_value_without_interval_is_never_marked(tmp_path: Path) -> None:
    files = [write(tmp_path, f"m{value}", {"t": {"accuracy": value}}) for value in (0.1, 0.9)]
    assert "**" not in markdown_table(read_measured(files))


def test_the_page_holds_numbers_floors_and_pictures(files: list[Path], tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2), "red")
    (tmp_path / "gtsa").mkdir()
    picture.save(tmp_path / "gtsa" / "knn_confusion_matrix.png")
    results = json.loads(files[0].read_text())
    results["knn"]["pictures"] = {"confusion_matrix": "gtsa/knn_confusion_matrix.png"}
    files[0].write_text(json.dumps(results))
    write_report(files, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Comparison of 2 models" in page
    rows = re.findall(
        r'<div class="row( best)?".*?<span>(\w+)( ★)?</span>.*?<b>(.*?)</b>(?: <span>(.*?)</span>)?', page, re.S
    )
    assert rows == [
        (" best", "gtsa", " ★", "0.710", "0.680 to 0.740"),
        ("", "loca", "", "0.640", "0.610 to 0.670"),
        ("", "gtsa", "", "0.700", ""),
        ("", "gtsa", "", "12.35", "11 to 13"),
        ("", "loca", "", "12.9", "12 to 14"),
        ("", "gtsa", "", "0.500", "0.400 to 0.600"),
        ("", "loca", "", "0.900", ""),
    ]
    dots = [float(left) for left in re.findall(r'class="at" style="left: ([\d.]+)%"', page)]
    assert dots[:3] == [71.0, 64.0, 70.0]
    assert dots[3] == pytest.approx(100 * 12.345 / 14, abs=0.01)
    assert "floors: most frequent class 0.125, random weights 0.210" in page
    assert page.count("was not measured") == 1
    embedded = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    assert len(embedded) == 1
    assert Image.open(BytesIO(base64.b64decode(embedded[0]))).getpixel((0, 0)) == (255, 0, 0)
    write_report(files, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == markdown_table(read_measured(files))


def test_the_page_asks_nothing_of_other_hosts_and_runs_nothing(tmp_path: Path) -> None:
    wicked = "<script>alert(1)</script><img src=https://example.org/x.png>"
    file = write(
        tmp_path, "m", {wicked: {wicked: 0.5}}, model=wicked, failed={"x": wicked}, command=wicked, dataset=wicked
    )
    page = html_page(read_measured([file]))
    assert "<script" not in page
    assert "<img" not in page
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\(|@import|<link', page) == []
    assert "default-src 'none'" in page
    assert html.escape("<script>alert(1)</script>") in page


def test_pictures_are_taken_from_beside_the_file_alone(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_text("no picture")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    places = ["../secret.png", str(tmp_path / "secret.png"), "text.png", "missing.png", "link.png", 3]
    for place in places:
        file = write(tmp_path / "in", "m", {"t": {"accuracy": 0.5, "pictures": {"p": place}}})
        assert read_measured([file])[0].pictures["t"] == {}


def test_a_task_of_many_numbers_shows_all_of_them(tmp_path: Path) -> None:
    file = write(tmp_path, "m", {"t": {f"accuracy_{index}": index / 100 for index in range(9)}})
    page = html_page(read_measured([file]))
    assert re.findall(r"<b>([\d.]+)</b>", page) == [f"{index / 100:.3f}" for index in range(9)]
    assert "3 more numbers" in page


def test_a_quick_evaluation_is_marked_and_explained(tmp_path: Path) -> None:
    quick = write(tmp_path, "gtsa", {"knn": knn(0.5, 0.4, 0.6)}, quick=True)
    whole = write(tmp_path, "loca", {"knn": knn(0.9, 0.8, 0.95)})
    table, page = markdown_table(read_measured([quick, whole])), html_page(read_measured([quick, whole]))
    assert table.startswith("| task | metric | gtsa (quick) | loca |")
    assert table.endswith(f"\n{QUICK_MEANING}\n")
    assert "**" not in table  # not set against each other
    assert page.count(QUICK_MEANING) == 1
    assert "gtsa (quick)" in page
    assert "quick" not in markdown_table(read_measured([whole])) + html_page(read_measured([whole]))


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [
        write(tmp_path / place, "run", {"t": {"accuracy": value}})
        for place, value in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    models = read_measured(files)
    assert [model.name for model in models] == ["run", "run (2)", "run (3)"]
    assert are_comparable(models)


@pytest.mark.parametrize("key", ["images_fingerprint", "seed", "columns", "config_name"])
def test_models_measured_on_other_images_are_not_set_against_each_other(key: str, tmp_path: Path) -> None:
    """Folders of one name may hold different images."""
    entry, other = knn(0.9, 0.85, 0.95), knn(0.1, 0.05, 0.15)
    same = [write(tmp_path, name, {"knn": e}, **{key: "a"}) for name, e in (("x", entry), ("y", other))]
    assert compare(read_measured(same), "knn")["accuracy"][0].best
    different = [same[0], write(tmp_path, "z", {"knn": other}, **{key: "b"})]
    assert not are_comparable(read_measured(different))
    assert not compare(read_measured(different), "knn")["accuracy"][0].best


def test_files_of_another_form_are_told(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text("{")
    for name, told in (
        ("list", "list.json is not of the form"),
        ("text", "text.json is not JSON"),
        ("no", "no such file"),
    ):
        with pytest.raises(ValueError, match=told):
            read_measured([tmp_path / f"{name}.json"])
    with pytest.raises(ValueError, match="an .html page or an .md table, got 'x.pdf'"):
        write_report([], tmp_path / "x.pdf")


def test_a_table_for_a_terminal_has_no_html_entities(tmp_path: Path) -> None:
    content = {"about": {"model": "a|b", "failed": {"knn": "install hf_geossl[eval]"}}}
    (tmp_path / "m.json").write_text(json.dumps(content))
    models = read_measured([tmp_path / "m.json"])
    assert "knn of a|b was not measured: install hf_geossl[eval]" in markdown_table(models, escape=False)
    assert "knn of a&#124;b was not measured: install hf_geossl&#91;eval&#93;" in markdown_table(models)


def test_a_terminal_shows_numbers_beside_their_floors_in_80_columns(tmp_path: Path) -> None:
    floors = {"accuracy": {"most frequent class": 0.1, "random weights": 0.2, "thumbnail": 0.25}}
    entry = {"accuracy": 0.7, "mean_per_class_accuracy": 0.5, "intervals": {"accuracy": [0.6, 0.8]}}
    file = write(tmp_path, "geossl-quickstart", {"knn": {**entry, "details": {"floors": floors}}})
    assert terminal_table(read_measured([file])).splitlines() == [
        "                           geossl-quickstart     random  thumbnail  guessing",
        "knn",
        "  accuracy                 0.700 [0.600, 0.800]  0.200   0.250      0.100",
        "  mean per class accuracy  0.500",
    ]
