"""Reports of results: a Markdown table, and a page that compares models, with pictures, in one file."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_geossl.evaluation.registry import ABOUT, FAILED
from hf_geossl.evaluation.results import numbers
from hf_geossl.evaluation.settings import QUICK_MEANING
from hf_geossl.hub.headlines import COLUMNS, floor_columns, lower_is_better, metric_words, question_of
from hf_geossl.hub.redaction import escape_markdown, redact_values

_PNG = b"\x89PNG\r\n\x1a\n"
# models whose numbers may be set against each other have been measured alike in these
_COMPARABLE = (
    *(
        "dataset",
        "config_name",
        "split",
        "train_split",
        "limit",
        "images",
        "images_fingerprint",
        "columns",
        "seed",
        "quick",
    ),
)


@dataclass(frozen=True)
class Measured:
    """The results of one model.

    Args:
        name (`str`): Its name in the report.
        results (`dict`): As `evaluate_model` returns it.
        pictures (`dict[str, dict[str, bytes]]`): PNG files by task ("" for those of the model itself) and picture.
    """

    name: str
    results: Mapping[str, Any]
    pictures: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    @property
    def about(self) -> Mapping[str, Any]:
        """Model, data and seed."""
        return self.results.get(ABOUT, {})

    @property
    def tasks(self) -> list[str]:
        """The tasks that were measured."""
        return [name for name in self.results if name != ABOUT]


@dataclass(frozen=True)
class Number:
    """A value of one model: its 95 % interval, the floors that it has to beat, and whether it is surely the best."""

    model: int
    value: float
    interval: tuple[float, float] | None
    floors: Mapping[str, float]
    best: bool = False


def read_measured(files: Sequence[str | Path]) -> list[Measured]:
    """Reads files of results.

    Args:
        files (`Sequence[str | Path]`): What `evaluate_model` wrote; their pictures lie beside them.

    Returns:
        `list[Measured]`: One a file; models of the same name are numbered.

    Raises:
        ValueError: If a file is missing or of another form.
    """
    models: list[Measured] = []
    for file in map(Path, files):
        try:
            results = redact_values(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(f"{file.name} cannot be read: {(error.strerror or 'unknown reason').lower()}") from None
        except ValueError as error:
            raise ValueError(f"{file.name} is not JSON: {error}") from None
        if not isinstance(results, dict) or not all(isinstance(entry, dict) for entry in results.values()):
            raise ValueError(
                f"{file.name} is not of the form {{task: {{metric: number}}}}, as geossl evaluate writes it"
            )
        name = str(results.get(ABOUT, {}).get("model", file.stem))
        pictures = {}
        for task, entry in results.items():
            places = entry.get("pictures")
            pictures["" if task == ABOUT else task] = {
                key: picture
                for key, place in (places if isinstance(places, dict) else {}).items()
                if (picture := _read_png(file.parent, place))
            }
        same = sum(one.results.get(ABOUT, {}).get("model") == results.get(ABOUT, {}).get("model") for one in models)
        models.append(Measured(f"{name} ({same + 1})" if same else name, results, pictures))
    return models


def _read_png(folder: Path, place: object) -> bytes | None:
    """A picture beside the results; nothing that lies elsewhere, since the file may come from anybody."""
    path = (folder / str(place)).resolve()
    if not path.is_relative_to(folder.resolve()) or path.suffix != ".png" or not path.is_file():
        return None
    content = path.read_bytes()
    return content if content.startswith(_PNG) else None


def are_comparable(models: Sequence[Measured]) -> bool:
    """Whether all were measured on the same images."""
    return all(len({json.dumps(model.about.get(key)) for model in models}) == 1 for key in _COMPARABLE)


def compare(models: Sequence[Measured], task: str) -> dict[str, list[Number]]:
    """The numbers of a task side by side, by metric, of the models that have it.

    Marked as best is a value whose interval has no point in common with that of any other model, where all were measured on the
    same images with the same settings.
    """
    table: dict[str, list[Number]] = {}
    for index, model in enumerate(models):
        entry = model.results.get(task, {})
        floors = entry.get("details", {}).get("floors", {})
        for metric, value in numbers(entry).items():
            interval = entry.get("intervals", {}).get(metric)
            ends = (float(interval[0]), float(interval[1])) if interval else None
            known = {name: floor for name, floor in floors.get(metric, {}).items() if isinstance(floor, (int, float))}
            table.setdefault(metric, []).append(Number(index, float(value), ends, known))
    measured = [model.results[task].get("settings") for model in models if task in model.results]
    if len(models) > 1 and are_comparable(models) and all(settings == measured[0] for settings in measured):
        table = {metric: _mark_best(row, lower_is_better(metric)) for metric, row in table.items()}
    return table


def _mark_best(row: list[Number], lower: bool) -> list[Number]:
    if len(row) < 2 or any(number.interval is None for number in row):
        return row
    sign = -1 if lower else 1
    first, *others = sorted(row, key=lambda number: -sign * number.value)
    low, high = first.interval or (0.0, 0.0)
    clear = all(other.interval and (other.interval[1] < low or other.interval[0] > high) for other in others)
    return [replace(number, best=clear and number is first) for number in row]


def _written(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def markdown_table(models: Sequence[Measured], *, escape: bool = True) -> str:
    """Writes results as a table.

    Args:
        models (`Sequence[Measured]`): One or several.
        escape (`bool`): Whether characters that are markup are written as entities; not in a terminal.

    Returns:
        `str`: A row a metric and a column a model; values with 95 % intervals, the surely best in bold, and what could not
        be measured below.
    """
    text: Callable[[object], str] = escape_markdown if escape else str
    names = [text(model.name) + (" (quick)" if model.about.get("quick") else "") for model in models]
    lines = [
        f"| task | metric | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(models)}",
    ]
    for task in _tasks(models):
        for metric, row in compare(models, task).items():
            cells = [""] * len(models)
            for number in row:
                cell = _written(number.value)
                cell = f"**{cell}**" if number.best else cell
                if number.interval is not None:
                    cell += f" ({_written(number.interval[0])} to {_written(number.interval[1])})"
                cells[number.model] = cell
            lines.append(f"| {text(task)} | {text(metric_words(metric))} | {' | '.join(cells)} |")
    for model in models:
        for task, reason in model.about.get(FAILED, {}).items():
            lines.append(f"\n{text(task)} of {text(model.name)} was not measured: {text(reason)}")
    if any(model.about.get("quick") for model in models):
        lines.append(f"\n{QUICK_MEANING}")
    return "\n".join(lines) + "\n"


def terminal_table(models: Sequence[Measured]) -> str:
    """Writes results as aligned columns for a terminal.

    Args:
        models (`Sequence[Measured]`): One, beside what trivial models reach, or several side by side.

    Returns:
        `str`: A line a metric, values with 95 % intervals in brackets, and what could not be measured below.
    """
    floors = COLUMNS if len(models) == 1 else ()
    names = [model.name + (" (quick)" if model.about.get("quick") else "") for model in models]
    rows = [["", *names, *(name.removesuffix(" weights") for name in floors)]]
    for task in _tasks(models):
        rows.append([_words(task), *("" for _ in (*models, *floors))])
        for metric, measured in compare(models, task).items():
            cells = [""] * len(models)
            for number in measured:
                ends = "" if number.interval is None else " [{}, {}]".format(*map(_written, number.interval))
                cells[number.model] = f"{_written(number.value)}{ends}{' best' if number.best else ''}"
            reached = floor_columns(list(measured[0].floors.items()), metric)
            rows.append(
                [f"  {metric_words(metric)}", *cells, *(_written(reached[n]) if n in reached else "" for n in floors)]
            )
    filled = [column for column in range(len(rows[0])) if column == 0 or any(row[column] for row in rows[1:])]
    widths = [max(len(row[column]) for row in rows) for column in filled]
    lines = ["  ".join(row[column].ljust(w) for column, w in zip(filled, widths, strict=True)).rstrip() for row in rows]
    lines += [
        f"{_words(task)} of {model.name} was not measured: {reason}"
        for model in models
        for task, reason in model.about.get(FAILED, {}).items()
    ]
    if any(model.about.get("quick") for model in models):
        lines.append(QUICK_MEANING)
    return "\n".join(lines) + "\n"


def _tasks(models: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(task for model in models for task in model.tasks))


def html_page(models: Sequence[Measured]) -> str:
    """Writes results as a page that asks nothing of other hosts: values with intervals on one scale, floors, pictures."""
    tasks = []
    for task in _tasks(models):
        metrics = []
        for metric, row in compare(models, task).items():
            scale = _scale(row)
            shared = [_floors(number, scale) for number in row]
            metrics.append(
                {
                    "name": metric_words(metric),
                    "lower": lower_is_better(metric),
                    "rows": [_bar(number, models, scale) for number in row],
                    "floors": shared[0] if all(floors == shared[0] for floors in shared) else [],
                    "low": f"{scale[0]:.3g}",
                    "high": f"{scale[1]:.3g}",
                }
            )
        shown = [
            {"model": model.name, "name": _words(name), "data": _data(picture)}
            for name in dict.fromkeys(name for model in models for name in model.pictures.get(task, {}))
            for model in models
            if (picture := model.pictures.get(task, {}).get(name)) is not None
        ]
        tasks.append(
            {"id": task, "name": _words(task), "about": question_of(task), "metrics": metrics, "pictures": shown}
        )
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.jinja").render(
        models=[
            {
                "name": model.name,
                "about": model.about,
                "failed": {_words(task): reason for task, reason in model.about.get(FAILED, {}).items()},
                "features": _data(model.pictures.get("", {}).get("features")),
            }
            for model in models
        ],
        tasks=tasks,
        quick=QUICK_MEANING if any(model.about.get("quick") for model in models) else None,
        comparable=are_comparable(models),
    )


def _scale(row: Sequence[Number]) -> tuple[float, float]:
    """The range of a metric's axis: from 0 to 1 where all lies in it, else around what there is."""
    values = [value for n in row for value in (n.value, *(n.interval or ()), *n.floors.values())]
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    low, high = min(0.0, low), max(0.0, high)
    return (low, high) if high > low else (low, low + 1)


def _place(value: float, scale: tuple[float, float]) -> float:
    """Where on a scale, in per cent."""
    return round(100 * (value - scale[0]) / (scale[1] - scale[0]), 2)


def _floors(number: Number, scale: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"name": _words(name), "value": _written(value), "at": _place(value, scale)}
        for name, value in number.floors.items()
    ]


def _bar(number: Number, models: Sequence[Measured], scale: tuple[float, float]) -> dict[str, Any]:
    return {
        "model": models[number.model].name,
        "index": number.model,
        "value": _written(number.value),
        "interval": None if number.interval is None else [_written(end) for end in number.interval],
        "at": _place(number.value, scale),
        "ends": None if number.interval is None else [_place(end, scale) for end in number.interval],
        "floors": _floors(number, scale),
        "best": number.best,
    }


def _data(picture: bytes | None) -> str | None:
    return None if picture is None else f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def write_report(files: Sequence[str | Path], path: str | Path) -> None:
    """Writes a report to a file.

    Args:
        files (`Sequence[str | Path]`): What `evaluate_model` wrote, one a model.
        path (`str` or `Path`): An `.html` page, or the table as `.md`.

    Raises:
        ValueError: If a file cannot be read, or the path ends otherwise.
    """
    path = Path(path)
    check_report_path(path)
    models = read_measured(files)
    text = html_page(models) if path.suffix == ".html" else markdown_table(models)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def check_report_path(path: str | Path) -> None:
    """Raises a `ValueError` where a report cannot be written in a form that its name asks for."""
    if Path(path).suffix not in (".html", ".md"):
        raise ValueError(f"a report is an .html page or an .md table, got {Path(path).name!r}")
