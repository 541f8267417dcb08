"""What an inspection found, as plain values for JSON and as lines for people."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_geossl.data.inspection import Inspection
from hf_geossl.data.measuring.channel_statistics import ChannelStatistics
from hf_geossl.data.measuring.format_choice import MOST, choose_format, file_names
from hf_geossl.data.measuring.image_statistics import Measurement
from hf_geossl.data.notes import NOTES
from hf_geossl.data.pixel_values import are_colors
from hf_geossl.data.wording import counted
from hf_geossl.modeling.image_format import ImageFormat

PERCENTILES = (0.1, 1, 2, 25, 50, 75, 98, 99, 99.9)
_SHOWN = 8


def total_of(inspection: Inspection) -> Measurement:
    """The measurement of all splits together."""
    total = Measurement()
    for report in inspection.reports.values():
        total.merge(report.measured)
    return total


def choose_for(total: Measurement) -> tuple[ImageFormat, list[str]]:
    """What a model should read of the images: all channels, or RGB where they are colours or their numbers differ.

    Channels that files name, and not red, green and blue, are read by their numbers, also where a few images lack some.
    """
    channels = "rgb" if len(total.channels) != 1 or max(total.channels, default=3) in (1, 3) else "all"
    names = file_names(total)
    if channels == "rgb" and total.channels[len(names)] >= MOST * total.images and not are_colors(names):
        channels = ",".join(str(number) for number in range(1, len(names) + 1))
    if len(total.channels) == 1 and max(total.channels) == 1 and set(total.dtypes) != {"uint8"}:
        channels = "gray"
    return choose_format(total, channels=channels)


def as_values(inspection: Inspection) -> dict[str, Any]:
    """All that was found, as plain values for JSON."""
    total = total_of(inspection)
    chosen, lines = choose_for(total)
    return {
        "dataset": inspection.arguments.dataset,
        "limit": inspection.arguments.limit,
        "images": total.images,
        **_measured(total),
        "splits": {
            split: {
                "images": report.measured.images,
                "broken": report.measured.num_broken,
                "classes": dict(sorted(report.classes.items())),
                "label_column": report.label_column,
                "columns": report.columns,
                **_measured(report.measured),
            }
            for split, report in inspection.reports.items()
        },
        "broken": {
            "count": total.num_broken,
            "reasons": dict(total.broken.most_common()),
            "images": inspection.broken,
        },
        "duplicates": inspection.duplicates,
        "notes": [
            {
                "kind": kind,
                "what": NOTES[kind][0],
                "images": count,
                "first": total.note_examples[kind][0],
                "detail": total.note_examples[kind][1],
            }
            for kind, count in total.notes.most_common()
        ],
        "advice": advice(inspection, total),
        "image_format": chosen.to_dict(),
        "image_format_because": lines,
    }


def _measured(measured: Measurement) -> dict[str, Any]:
    return {
        "sizes": _sizes(measured),
        "channels": {str(count): images for count, images in sorted(measured.channels.items())},
        "types": dict(measured.dtypes.most_common()),
        "formats": dict(measured.kinds.most_common()),
        "channel_names": [{"names": list(names), "images": n} for names, n in measured.names.most_common(20) if names],
        "bits": {str(bits): images for bits, images in measured.bits.items() if bits is not None},
        "transparency": {str(number): images for number, images in sorted(measured.transparent.items())},
        "pages": {str(pages): images for pages, images in sorted(measured.pages.items())},
        "values": {
            dtype: [_statistics(number, one) for number, one in enumerate(channels, start=1)]
            for dtype, channels in measured.values.items()
        },
    }


def _statistics(number: int, one: ChannelStatistics) -> dict[str, Any]:
    values: dict[str, Any] = {"channel": number, "count": one.count, "without_value": one.without_value}
    if one.count:
        values |= {"min": one.low, "max": one.high, "mean": one.mean, "std": one.std}
        values["percentiles"] = {f"{percent:g}": one.percentile(percent) for percent in PERCENTILES}
    return values


def _sizes(measured: Measurement) -> dict[str, Any]:
    known = {size: count for size, count in measured.sizes.items() if size is not None}
    if not known:
        return {}
    counts = np.array(list(known.values()))
    sizes: dict[str, Any] = {}
    for axis, name in enumerate(("height", "width")):
        values = np.array([size[axis] for size in known])
        order = np.argsort(values, kind="stable")
        middle = order[np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)]
        sizes[name] = {"min": int(values.min()), "median": int(values[middle]), "max": int(values.max())}
    most = Counter(known).most_common(20)
    sizes["different"] = len(known)
    sizes["most_frequent"] = [{"height": height, "width": width, "images": n} for (height, width), n in most]
    return sizes


def advice(inspection: Inspection, total: Measurement) -> list[str]:
    """What the user should know before training, a sentence each."""
    lines = []
    across = inspection.duplicates.get("across_splits", 0)
    if across:
        lines.append(
            f"{counted(across, 'image')} of one split {'is' if across == 1 else 'are'} in another one too: what is measured "
            "there is not held out"
        )
    broken = total.num_broken
    if broken > 0.1 * (broken + total.images):
        lines.append(
            f"{broken / (broken + total.images):.0%} of the images are broken, and a run stops at 10 %: mend them, or give "
            "--max_broken_share"
        )
    if len(total.channels) > 1:
        shown = ", ".join(
            f"{count} ({n:,}: {total.channel_examples[count]}{', ...' if n > 1 else ''})"
            for count, n in sorted(total.channels.items())
        )
        lines.append(f"images have different numbers of channels: {shown}; as rgb or gray all can be used")
    if len(total.dtypes) > 1:
        shown = ", ".join(f"{dtype} ({n:,})" for dtype, n in total.dtypes.most_common())
        lines.append(f"images store values of several types: {shown}")
    for dtype, channels in total.values.items():
        for number, one in enumerate(channels, start=1):
            if one.count and one.low == one.high:
                lines.append(f"channel {number} of {dtype} has the same value everywhere ({one.low:g})")
            elif one.count and dtype != "uint8" and one.percentile(99.9) < one.low + (one.high - one.low) / 16:
                lines.append(
                    f"channel {number} of {dtype}: 99.9 % of the values lie below {one.percentile(99.9):g}, the largest is "
                    f"{one.high:g}: --value_range percentiles:0.1,99.9 uses the range better"
                )
    return lines


def as_lines(values: Mapping[str, Any]) -> list[str]:
    """What was found, for a terminal."""
    lines = []
    for split, one in values["splits"].items():
        broken = f", {counted(one['broken'], 'broken one', 'broken ones')}" if one["broken"] else ""
        lines.append(f"{split}: {counted(one['images'], 'image')}{broken}{_classes(one)}")
        columns = [f"{name} ({kind})" for name, kind in one["columns"].items()]
        if set(one["columns"]) - {"image", "label"}:
            lines.append(f"  columns: {', '.join(columns[:20])}")
    sizes = values["sizes"]
    if sizes:
        height, width = sizes["height"], sizes["width"]
        most = sizes["most_frequent"][0]
        extent = f"{height['min']} to {height['max']} high, {width['min']} to {width['max']} wide, most often "
        lines.append(
            f"size: {extent if sizes['different'] > 1 else ''}{most['height']} x {most['width']} (height x width)"
        )
    lines.append(
        f"files: {_counts(values['formats'])}; channels: {_counts(values['channels'])}; type: {_counts(values['types'])}"
    )
    for one in values["channel_names"][:_SHOWN]:
        lines.append(
            f"channels, as {one['images']:,} of {values['images']:,} files name them: {', '.join(one['names'])}"
        )
    for name, what in (
        ("bits", "bits in use, as the files say"),
        ("transparency", "transparency as channel"),
        ("pages", "pages"),
    ):
        if values[name]:
            lines.append(f"{what}: {_counts(values[name])}")
    for dtype, channels in values["values"].items():
        for one in [one for one in channels if "mean" in one][:20]:
            q = one["percentiles"]
            lost = f", {one['without_value']:,} pixels without a value" if one["without_value"] else ""
            lines.append(
                f"  {dtype} channel {one['channel']}: {one['min']:g} to {one['max']:g}, mean {one['mean']:.4g}, deviation "
                f"{one['std']:.4g}; 1 %, 50 %, 99 %: {q['1']:.4g}, {q['50']:.4g}, {q['99']:.4g}{lost}"
            )
    for reason, count in list(values["broken"]["reasons"].items())[:_SHOWN]:
        where = next((one["image"] for one in values["broken"]["images"] if one["reason"] == reason), "")
        lines.append(f"broken: {counted(count, 'image')}, such as {where}: {reason}")
    copies = values["duplicates"].get("copies", 0)
    if copies:
        group = values["duplicates"]["groups"][0]
        lines.append(
            f"duplicates: {counted(copies, 'image')} with the content of another one, such as {' = '.join(group[:3])}"
        )
    for one in values["notes"]:
        lines.append(f"note: {counted(one['images'], 'image')}: {one['what']} (first {one['first']}: {one['detail']})")
    lines += [f"mind: {line}" for line in values["advice"]]
    return lines


def _classes(split: Mapping[str, Any]) -> str:
    classes = split["classes"]
    if not classes:
        return ""
    most = Counter(classes).most_common(_SHOWN)
    shown = ", ".join(f"{name} {count:,}" for name, count in most) + (", ..." if len(classes) > _SHOWN else "")
    rows = sum(classes.values())
    of_all = (
        f" of all {rows:,}" if rows > split["images"] + split["broken"] else ""
    )  # labels are counted without a limit
    return f"; {counted(len(classes), 'class', 'classes')} ({split['label_column']}){of_all}: {shown}"


def _counts(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:_SHOWN]) or "none"
