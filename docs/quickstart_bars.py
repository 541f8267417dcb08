"""Draws the bars of docs/pretrain.md from the numbers in benchmarks/results/learning/: python docs/quickstart_bars.py [FILE]"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/learning"
GREY, COLOR = "#b8b8b8", "#00796b"


def read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def values(recipe: str, probe: str, what: str) -> list[float]:
    """A probe of each seed, in percent."""
    files = sorted(RESULTS.glob(f"{recipe}-[0-9].json"))
    return [100 * read(file.stem)["measured"][what][probe][0] for file in files]


def main() -> None:
    dino = read("hosts/dino-5e-4-temperature-.025")["measured"]["trained"]
    found = [100 * read(f.stem)["evaluated"]["eval_location_accuracy"] for f in sorted(RESULTS.glob("loca_q*.json"))]
    turns = {
        "GTSA": values("quickstart", "turns", "trained"),
        "DINO, 9,000 images": [100 * dino["turns"][0]],
        "random weights": values("quickstart", "turns", "random weights"),
        "thumbnail": values("quickstart", "turns", "pixels"),
    }
    maps = {
        "LOCA": values("loca_quickstart", "segmentation", "trained"),
        "DINO, 9,000 images": [100 * dino["segmentation"][0]],
        "random weights": values("loca_quickstart", "segmentation", "random weights"),
        "pixels of a patch": values("loca_quickstart", "segmentation", "pixels"),
    }
    places = {"LOCA": found, "guessing": [100 / 36]}
    panels = (
        ("Which way is it turned?", "quarter turns told by a linear probe, %", turns),
        ("What is where?", "linear segmentation of 17 classes, mIoU, %", maps),
        ("Where does this patch lie?", "patches found at their place, of 36, %", places),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.1), layout="constrained")
    for axis, (question, unit, rows) in zip(axes, panels, strict=True):
        means = [sum(numbers) / len(numbers) for numbers in rows.values()]
        axis.barh(list(rows), means, color=[COLOR, *[GREY] * (len(rows) - 1)], height=0.6)
        for place, (numbers, mean) in enumerate(zip(rows.values(), means, strict=True)):
            axis.plot(numbers, [place] * len(numbers), "o", color="black", markersize=3)
            axis.text(max(numbers), place, f"  {mean:.0f}" if mean >= 20 else f"  {mean:.1f}", va="center")
        axis.set_title(question, loc="left", fontweight="bold")
        axis.set_xlabel(unit)
        axis.set_xlim(0, 1.15 * max(max(numbers) for numbers in rows.values()))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "quickstart_bars.png", dpi=110, metadata={"Software": ""})


if __name__ == "__main__":
    main()
