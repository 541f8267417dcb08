"""The rule (section 4 of the specification), fixed before anything was run: the gate, the claims and their verdicts."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.scenes_experiment.arms import ARMS, NO_PROTOTYPES

Results = dict[str, dict[int, dict[str, Any]]]  # by arm and seed, what `runs.run_arm` returns


@dataclass(frozen=True)
class Claim:
    """
    A comparison of two arms.

    Args:
        what (`str`): In words.
        arm, other (`str`): The difference is the first minus the second.
        measure (`Callable`): Reads a number from an arm's results (None where it was not measured).
        threshold (`float`): What the mean difference has to reach; below 0 a loss that is allowed ("not worse").
        minus (`tuple[str, str]`, *optional*): Two more arms, whose difference is subtracted: a gap against another gap.
    """

    what: str
    arm: str
    other: str
    measure: Callable[[dict[str, Any]], float | None]
    threshold: float
    minus: tuple[str, str] | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that the claim rests on."""
        return (self.arm, self.other, *(self.minus or ()))


def judge(differences: Sequence[float], threshold: float) -> dict[str, Any]:
    """
    The verdict on paired differences: all have the right sign, the mean reaches the threshold, and the mean is at least
    twice its standard error. For a threshold below 0 ("not worse by more than") the allowed loss is added first.

    Args:
        differences (`Sequence[float]`): One a seed.
        threshold (`float`): In the unit of the differences.

    Returns:
        `dict`: `mean`, `standard_error` (None for one seed) and `verdict`, "shown" or "not shown".
    """
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    allowed = max(-threshold, 0.0)
    shifted = [difference + allowed for difference in differences]
    shown = (
        len(differences) >= 3
        and error is not None
        and all(difference > 0 for difference in shifted)
        and mean >= threshold
        and mean + allowed >= 2 * error
    )
    return {"mean": mean, "standard_error": error, "verdict": "shown" if shown else "not shown"}


def metric(task: str, metric: str, scale: float = 100.0) -> Callable[[dict[str, Any]], float | None]:
    """Reads a metric of an arm's results; in per cent unless `scale` is 1."""

    def read(tasks: dict[str, Any]) -> float | None:
        value = tasks.get(task, {}).get(metric)
        return None if value is None else scale * value

    return read


def _classes(tasks: dict[str, Any]) -> float | None:
    """The mean of k-NN and linear accuracy, in per cent."""
    values = [metric(task, "accuracy")(tasks) for task in ("knn", "linear")]
    return None if None in values else statistics.fmean(value for value in values if value is not None)


MEAN_IOU = metric("segmentation", "mean_iou")
FINE_TUNED, FEW_SHOT = (metric("segmentation_few_shot", f"mean_iou_{share}") for share in ("1", "1/32"))
# The specification asks for ridge regression, which on scenes from above is 0 for any features whatever they know (see
# `hf_geossl.evaluation.protocols.equivariance`). Its claims stay as they were fixed; the same by products stand beside them, added
# before any arm of EquiCoherent was measured so.
ROTATION_R2 = {kind: metric("equivariance", f"rotation_r2_{kind}", 1.0) for kind in ("ridge", "bilinear")}
TURNS = "GTSA: quarter turns"
CLAIMS = (
    Claim("GTSA: linear segmentation, mIoU", "gtsa", "dino", MEAN_IOU, 1.5),
    Claim("GTSA: fine-tuned segmentation, mIoU", "gtsa", "dino", FINE_TUNED, 1.0),
    Claim("GTSA: scene class, linear", "gtsa", "dino", metric("linear", "accuracy"), 1.0),
    Claim("GTSA: detection, AP50", "gtsa", "dino", metric("detection", "box_ap50"), 1.0),
    Claim(TURNS, "gtsa", "dino", metric("rotation", "accuracy"), 10.0),
    Claim("LOCA: fine-tuned segmentation, mIoU, all images", "loca", "loca_cluster", FINE_TUNED, 1.5),
    Claim("LOCA: fine-tuned segmentation, mIoU, 1/32", "loca", "loca_cluster", FEW_SHOT, 2.0),
    Claim("LOCA: fine-tuned segmentation against random, all images", "loca", "random", FINE_TUNED, 1.5),
    Claim("LOCA: fine-tuned segmentation against random, 1/32", "loca", "random", FEW_SHOT, 2.0),
    *(
        Claim(f"EquiCoherent: R2(rotation), {kind}, against {what}", arm, other, measure, threshold)
        for kind, measure in ROTATION_R2.items()
        for what, arm, other, threshold in (
            ("the control", "ibot_equicoherent", "ibot_control", 0.10),
            *((f"plain {host}", f"{host}_equicoherent", host, 0.20) for host in ("ibot", "dinov2", "vicreg")),
        )
    ),
    *(
        Claim(
            f"GTSA: larger gap on scenes than on objects, {what}",
            "gtsa",
            "dino",
            measure,
            0.0,
            ("gtsa_object", "dino_object"),
        )
        for what, measure in (("mIoU", MEAN_IOU), ("class, linear", metric("linear", "accuracy")))
    ),
    Claim("EquiCoherent: scene classes not worse", "ibot_equicoherent", "ibot_control", _classes, -2.0),
    Claim("EquiCoherent: segmentation not worse", "ibot_equicoherent", "ibot_control", MEAN_IOU, -0.5),
)


@dataclass(frozen=True)
class Gate:
    """
    Whether an arm has learned enough for its numbers to be compared; a check is None where it was not measured.

    Args:
        arm (`str`): Which.
        knn, random_knn, thumbnail (`float`, *optional*): Accuracy of the arm, of random weights and of a thumbnail, in
            per cent.
        iou, random_iou (`float`, *optional*): Mean IoU of linear segmentation of the arm and of random weights.
        diversity (`list[float]`, *optional*): Of the predictions in the last two quarters of the run, in nats.
        entropy, uniform (`float`, *optional*): The teacher's mean entropy at the end, and the largest that there can be.
        spread (`float`, *optional*): Of the features at the end, see `hf_geossl.training.monitors.probes`.
    """

    arm: str
    knn: float | None
    random_knn: float | None
    thumbnail: float | None
    iou: float | None
    random_iou: float | None
    diversity: list[float] | None
    entropy: float | None
    uniform: float | None
    spread: float | None

    @property
    def alive(self) -> bool | None:
        """Whether the objective is alive."""
        if self.diversity is not None:  # "not falling": the last quarter against the one before, within a twentieth
            started = self.entropy is None or self.uniform is None or self.entropy < self.uniform - 0.1
            return started and self.diversity[1] > 0.5 and self.diversity[1] >= 0.95 * self.diversity[0]
        if self.arm.startswith(NO_PROTOTYPES):  # there is no entropy to look at: that features are not all alike
            return None if self.spread is None else self.spread > 0.1
        return None

    @property
    def checks(self) -> dict[str, bool | None]:
        """What the gate asks for, by name."""
        return {
            "k-NN above random": _reaches(self.knn, self.random_knn, 8),
            "k-NN above the thumbnail": None if None in (self.knn, self.thumbnail) else self.knn > self.thumbnail,  # type: ignore[operator]
            "segmentation above random": _reaches(self.iou, self.random_iou, 3),
            "objective alive": self.alive,
        }


def _reaches(value: float | None, floor: float | None, more: float) -> bool | None:
    return None if value is None or floor is None else value >= floor + more


def gate(arm: str, result: dict[str, Any], random: dict[str, Any]) -> Gate:
    """
    The gate of an arm.

    Args:
        arm (`str`): Which.
        result, random (`dict`): What `run_arm` has returned for it and for random weights of the same seed.
    """
    tasks, floor, training = result["tasks"], random["tasks"], result["training"]
    accuracy = metric("knn", "accuracy")
    random_knn = accuracy(floor)
    floors = tasks.get("knn", {}).get("details", {}).get("floors", {}).get("accuracy", {})
    if random_knn is not None:  # another method pools otherwise: its own random twin counts where it is better
        random_knn = max(random_knn, 100 * floors.get("random weights", 0.0))
    thumbnail = floors.get("thumbnail")
    return Gate(
        arm,
        accuracy(tasks),
        random_knn,
        None if thumbnail is None else 100 * thumbnail,
        MEAN_IOU(tasks),
        MEAN_IOU(floor),
        *(
            training.get(name)
            for name in ("prediction_diversity", "teacher_entropy", "uniform_entropy", "feature_spread")
        ),
    )


def floor_of(arm: str) -> str:
    """The arm of random weights that an arm is compared with."""
    return "random_object" if ARMS[arm].mode == "object" else "random"


def gates(results: Results, arm: str, seeds: Sequence[int]) -> list[Gate]:
    """The gates of an arm, of each seed that random weights were measured with too."""
    floor = results.get(floor_of(arm), {})
    return [gate(arm, results[arm][seed], floor[seed]) for seed in seeds if seed in floor]


def check(results: Results, arm: str, seeds: Sequence[int]) -> dict[str, bool | None]:
    """Whether an arm passes each part of the gate with all seeds; None where it was not measured with one, and fails with none."""
    passed = [one.checks for one in gates(results, arm, seeds)]
    return {name: _all([checks[name] for checks in passed], len(seeds)) for name in Gate(arm, *[None] * 9).checks}


def _all(checks: Sequence[bool | None], seeds: int) -> bool | None:
    if False in checks:
        return False
    return None if None in checks or len(checks) < seeds else True


def verdicts(results: Results) -> list[dict[str, Any]]:
    """
    The rule applied to every claim.

    Args:
        results (`dict`): By arm and seed, what `run_arm` has returned.

    Returns:
        `list[dict]`: For each claim the paired differences, their mean and standard error, what stands against it, and
        "shown", "not shown" or "not measured".
    """
    table = []
    for claim in CLAIMS:
        numbers = {
            seed: [claim.measure(results[arm][seed]["tasks"]) for arm in claim.arms]
            for seed in sorted(set.intersection(*(set(results.get(arm, ())) for arm in claim.arms)))
        }
        measured = {seed: [n for n in row if n is not None] for seed, row in numbers.items() if None not in row}
        signs = (1, -1, -1, 1)
        differences = [sum(sign * n for sign, n in zip(signs, row, strict=False)) for row in measured.values()]
        row: dict[str, Any] = {
            "claim": claim.what,
            "arms": list(claim.arms),
            "threshold": claim.threshold,
            "differences": differences,
        }
        if not differences:
            table.append(row | {"verdict": "not measured", "against": []})
            continue
        # near the ceiling of R2 the share that is not explained counts, and not the difference
        near_ceiling = (
            claim.measure in ROTATION_R2.values()
            and claim.other == "ibot_control"
            and statistics.fmean(control for _, control in measured.values()) > 0.6
        )
        row |= judge(differences, 0.0 if near_ceiling else claim.threshold)
        against = [f"{len(differences)} of the three seeds"] if len(differences) < 3 else []
        if near_ceiling and not all(1 - ours <= 0.75 * (1 - control) for ours, control in measured.values()):
            against.append("1 - R2 falls by less than a quarter")
        against += _failed_gates(claim, list(measured), results)
        against += _further_conditions(claim, list(measured), results)
        if against:
            row["verdict"] = "not shown"
        elif row["verdict"] == "not shown":
            against = ["the differences"]
        table.append(row | {"against": against})
    return table


def _failed_gates(claim: Claim, seeds: Sequence[int], results: Results) -> list[str]:
    failed = []
    for arm in claim.arms:
        for name, passed in check(results, arm, seeds).items() if ARMS[arm].trained else ():
            if not passed:
                failed.append(f"gate of {arm}: {name}{'' if passed is False else ' was not measured'}")
    return failed


def _further_conditions(claim: Claim, seeds: Sequence[int], results: Results) -> list[str]:
    """What a claim asks for beside the difference."""
    ours = [results[claim.arm][seed]["tasks"] for seed in seeds]
    further = []
    if claim.what == TURNS and not all((claim.measure(tasks) or 0) >= 80 for tasks in ours):
        further.append("below 80 % of quarter turns")
    for kind, measure in ROTATION_R2.items():
        if claim.measure is measure and not all(
            tasks["equivariance"]["details"]["beats_all_floors"]["rotation"][kind] for tasks in ours
        ):
            further.append("not above all four floors")
    if claim.arm == "loca" and claim.other == "loca_cluster":
        positions = [tasks["position"] for tasks in ours if "position" in tasks]
        chances = [position["details"]["floors"]["position_accuracy"]["chance"] for position in positions]
        above = [p["position_accuracy"] >= 5 * chance for p, chance in zip(positions, chances, strict=True)]
        if len(positions) < len(ours) or not all(above):
            further.append("position accuracy below 5 x chance")
    return further
