"""The tables of the experiment in Markdown: the gate, the numbers, the verdicts, the times."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.scenes_experiment.arms import ARMS
from benchmarks.scenes_experiment.rule import (
    FEW_SHOT,
    FINE_TUNED,
    MEAN_IOU,
    ROTATION_R2,
    Results,
    check,
    gates,
    metric,
    verdicts,
)

_COLUMNS = (
    ("k-NN", metric("knn", "accuracy"), ".1f"),
    ("linear", metric("linear", "accuracy"), ".1f"),
    ("mAP", metric("multilabel", "mean_average_precision"), ".1f"),
    ("mIoU", MEAN_IOU, ".1f"),
    ("tuned 1/32", FEW_SHOT, ".1f"),
    ("tuned 1", FINE_TUNED, ".1f"),
    ("AbsRel", metric("depth", "abs_rel", 1.0), ".3f"),
    ("AP50", metric("detection", "box_ap50"), ".1f"),
    ("turns", metric("rotation", "accuracy"), ".1f"),
    ("R2 rotation", ROTATION_R2["ridge"], ".3f"),
    ("by products", ROTATION_R2["bilinear"], ".3f"),
    ("R2 translation", metric("equivariance", "translation_r2_ridge", 1.0), ".3f"),
    ("R2 colour", metric("equivariance", "color_r2_ridge", 1.0), ".3f"),
    ("R2 blur", metric("equivariance", "blur_r2_ridge", 1.0), ".3f"),
    ("kite angle", metric("orientation", "angular_error", 1.0), ".1f"),
    ("J&F", metric("propagation", "j_and_f_mean"), ".1f"),
)
_WORDS = {True: "yes", False: "no", None: "not measured"}


def _mean(values: Iterable[float | None], form: str) -> str:
    measured = [value for value in values if value is not None]
    return format(statistics.fmean(measured), form) if measured else "-"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(names)} |",
        f"|{' --- |' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def gate_table(results: Results) -> list[str]:
    """The gate of every arm: what was measured, and what passes with all seeds."""
    rows = []
    for arm in (arm for arm in ARMS if arm in results and ARMS[arm].trained):
        seeds = sorted(results[arm])
        measured, checks = gates(results, arm, seeds), check(results, arm, seeds)
        alive = ", ".join(
            f"{one.diversity[0]:.2f} -> {one.diversity[1]:.2f}"
            if one.diversity is not None
            else "-"
            if one.spread is None
            else f"spread {one.spread:.2f}"
            for one in measured
        )
        entropy = [
            None if one.uniform is None or one.entropy is None else one.uniform - one.entropy for one in measured
        ]
        passed = False if False in checks.values() else None if None in checks.values() else True
        failed = ", ".join(name for name, value in checks.items() if not value)
        rows.append(
            (
                arm,
                str(len(seeds)),
                " / ".join(
                    _mean((getattr(one, name) for one in measured), ".1f")
                    for name in ("knn", "random_knn", "thumbnail")
                ),
                " / ".join(_mean((getattr(one, name) for one in measured), ".1f") for name in ("iou", "random_iou")),
                alive or "-",
                _mean(entropy, ".2f"),
                f"**{_WORDS[passed]}**{f' ({failed})' if failed else ''}",
            )
        )
    names = (
        "arm",
        "seeds",
        "k-NN / random / thumbnail",
        "mIoU / random",
        "diversity of predictions, nats (third -> last quarter of the run)",
        "ln K - teacher entropy",
        "passes the gate",
    )
    return _table(names, rows)


def numbers_table(results: Results) -> list[str]:
    """The probes of every arm, means over seeds."""
    rows = (
        (
            arm,
            str(len(results[arm])),
            *(_mean((measure(one["tasks"]) for one in results[arm].values()), form) for _, measure, form in _COLUMNS),
        )
        for arm in ARMS
        if arm in results
    )
    return _table(("arm", "seeds", *(name for name, _, _ in _COLUMNS)), rows)


def verdicts_table(results: Results) -> list[str]:
    """The claims by the rule."""
    rows = []
    for row in verdicts(results):
        error = row.get("standard_error")
        rows.append(
            (
                f"{row['claim']} ({_difference(row['arms'])})",
                f"{row['threshold']:+g}",
                ", ".join(f"{difference:+.3g}" for difference in row["differences"]),
                "-" if error is None else f"{row['mean']:+.3g} +- {error:.2g}",
                f"**{row['verdict']}**",
                "; ".join(row["against"]),
            )
        )
    return _table(("claim", "threshold", "differences", "mean", "verdict", "what stands against it"), rows)


def _difference(arms: Sequence[str]) -> str:
    return " - ".join(arms) if len(arms) == 2 else f"({arms[0]} - {arms[1]}) - ({arms[2]} - {arms[3]})"


def times_table(results: Results) -> list[str]:
    """Seconds of every arm, means over seeds."""
    rows = []
    for arm in (arm for arm in ARMS if arm in results):
        lines = list(results[arm].values())
        rate = _mean((one["training"].get("images_per_second") for one in lines), ",.0f")
        rows.append(
            (arm, *(_mean((one["seconds"][name] for one in lines), ".0f") for name in ("training", "probes")), rate)
        )
    return _table(("arm", "training, s", "probes, s", "images/s"), rows)


def describe_weight(about: dict[str, Any]) -> str:
    """How the reconstruction weight was chosen, in a sentence."""
    chosen = about.get("reconstruction_weight")
    if chosen is None:
        return ""
    scores = ", ".join(f"{weight}: {score:+.3f}" for weight, score in chosen["scores"].items())
    return (
        f"Reconstruction weight {chosen['weight']:g}, chosen before the run by R2(rotation), by products, on seed "
        f"{chosen['seed']} ({scores})."
    )


def markdown(about: dict[str, Any], results: Results, command: str) -> str:
    """Everything: the gate on the top, numbers, verdicts, and the times at the end."""
    settings, machines = about["settings"], sorted({one["machine"] for arm in results.values() for one in arm.values()})
    sizes = (
        f"{settings['steps']} steps of {settings['batch_size']}, {settings['train_images']} images of "
        f"{settings['image_size']} pixels, ViT {settings['hidden_size']} x {settings['num_hidden_layers']}, scenes "
        f"{about['scenes']}"
    )
    lines = [f"`{command}`, preset `{about['preset']}`: {sizes}; {'; '.join(machines)}.", ""]
    if about["preset"] in ("tiny", "smoke"):
        lines += ["A test of the code: nothing is claimed from it.", ""]
    if sentence := describe_weight(about):
        lines += [sentence, ""]
    lines += ["## Gate", "", *gate_table(results)]
    lines += ["## Claims", "", *verdicts_table(results)]
    lines += ["## Numbers", "", *numbers_table(results)]
    lines += ["## Times", "", *times_table(results)]
    return "\n".join(lines).rstrip() + "\n"
