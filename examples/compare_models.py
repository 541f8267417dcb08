"""Measures several models by the same code, beside random weights, and writes one page that compares them.

    python examples/compare_models.py run-a run-b timm:vit_small_patch16_224.dino --tasks knn rotation --dataset path/to/images

A model is a folder, an id on the Hub, or timm:NAME; with classes in path/to/images, train/CLASS/ and test/CLASS/.
"""

import argparse
from pathlib import Path

from hf_geossl import evaluate_model
from hf_geossl.evaluation.report import markdown_table, read_measured, write_report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tasks", nargs="+", default=["knn", "rotation"])
    parser.add_argument("--dataset", default="scenes")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    options = parser.parse_args()
    options.output.mkdir(exist_ok=True)
    files = []
    for number, model in enumerate(options.models):
        files.append(options.output / f"{number}-{Path(model).name.replace(':', '-')}.json")
        results = evaluate_model(model, options.tasks, options.dataset, limit=options.limit, output=files[-1])
        for task in options.tasks:
            main_metric = next(iter(results[task]["details"]["floors"]))
            floors = results[task]["details"]["floors"][main_metric]
            print(f"{model}, {task}: {main_metric} {results[task][main_metric]:.3f}, floors {floors}")
    print(markdown_table(read_measured(files), escape=False))
    write_report(files, options.output / "report.html")


if __name__ == "__main__":
    main()
