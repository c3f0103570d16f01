"""Format plans, summaries and projects for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from qpnuclei.cli.console import (
    MOST_LISTED,
    print_status,
    print_warning,
    stderr,
    stdout,
)
from qpnuclei.cli.descriptions import COUNTED, object_counts
from qpnuclei.errors import number_of
from qpnuclei.slides.resolution import mpp_text
from qpnuclei.system.one_line import in_one_line
from qpnuclei.system.timing import peak_memory_mib

if TYPE_CHECKING:
    from qpnuclei.doctor import Check
    from qpnuclei.pipeline.planning.image_plan import ImagePlan
    from qpnuclei.pipeline.summary import ImageResult, RunSummary
    from qpnuclei.qupath.certainty_filter import OwnNuclei
    from qpnuclei.qupath.model import ImageEntry
    from qpnuclei.qupath.native import NativeImage


#: An image with more annotations gets one line per class.
_MOST_LINES = 200


def plan_view(plans: list[ImagePlan]) -> Group:
    """Return a run's plan, image by image, with one line per region."""
    parts: list[Text | Table] = [Text("plan (nothing is changed)", style="bold")]
    for plan in plans:
        parts.append(Text(f"\n{in_one_line(plan.entry.name)}", style="bold"))
        parts.append(
            Text(
                f"  {mpp_text(plan.scale.mpp)} µm/px from {in_one_line(plan.mpp_source)}, analysed "
                f"at {mpp_text(plan.scale.working_mpp)} µm/px with "
                f"{in_one_line(Path(plan.model).name)}: "
                f"{plan.megapixels:.2f} Mpx, tiles: {len(plan.tiles)}"
            )
        )
        parts.extend(Text(f"  {in_one_line(note)}") for note in plan.notes)
        table = Table("annotation", "class", box=None, padding=(0, 2))
        for column in ("mm²", "nuclei by qpnuclei"):
            table.add_column(column, justify="right")
        rows: list[_Line] = [
            (
                region.label,
                region.annotation.class_name if region.annotation else None,
                (plan.area_mm2(region), len(existing)),
            )
            for region, existing in zip(plan.regions, plan.existing, strict=True)
        ]
        for label, class_name, (area, earlier) in _shortened(rows):
            table.add_row(label, class_name or "–", _mm2(area), f"{earlier:.0f}")
        parts.append(table)
    return Group(*parts)


#: Table row of an annotation: its name, its class, and numbers that can be added up.
_Line = tuple[str, str | None, tuple[float, ...]]


def _shortened(rows: list[_Line]) -> list[_Line]:
    """Return the rows of an image; of an image with many annotations, one row per class."""
    if len(rows) <= _MOST_LINES:
        return rows
    classes: dict[str | None, list[tuple[float, ...]]] = {}
    for _, class_name, numbers in rows:
        classes.setdefault(class_name, []).append(numbers)
    return [
        (number_of(len(in_class), "annotation"), name, tuple(map(sum, zip(*in_class, strict=True))))
        for name, in_class in classes.items()
    ]


def backups_table(images: Sequence[NativeImage], count: bool) -> Table:
    """Return the backups of images, one row each; with `count` also the number of objects."""
    table = Table("image")
    # With the counts, 80 columns are too narrow for all of it side by side.
    described = ["backup, saved, size"] if count else ["backup", "saved", "size"]
    for column in described:
        table.add_column(column, no_wrap=True)
    for column in COUNTED.values() if count else ():
        table.add_column(column, justify="right", no_wrap=" " not in column)
    for image in images:
        for index, backup in enumerate(image.backups()):
            saved = f"{backup.saved.astimezone():%Y-%m-%d %H:%M}"
            size = decimal(backup.size)
            name = image.name if index == 0 else ""
            if count:
                cells = _count_cells(object_counts(image, backup))
                table.add_row(name, Text(f"{backup.id}\n{saved}, {size}"), *cells)
            else:
                table.add_row(name, backup.id, saved, size)
    return table


def _count_cells(counts: dict[str, int | None]) -> list[str]:
    if None in counts.values():
        return ["unreadable", "", ""]
    return [str(counts[name]) for name in COUNTED]


def summary_table(summary: RunSummary) -> Table:
    """Return the nuclei counted in each annotation; the title has the number written."""
    counted = sum(region.nuclei for image in summary.images for region in image.regions)
    title, caption = number_of(summary.nuclei, "nucleus"), None
    if counted != summary.nuclei:
        locked = sum(image.locked for image in summary.images)
        title += f" written, {counted} counted"
        kept = f"the {locked} that are locked, others" if locked else "those"
        caption = (
            f"Every nucleus in an annotation is counted, as in export: also {kept} of earlier "
            "runs, and those of other programs; nuclei removed since, by filter or in QuPath, are "
            "not. A nucleus in two annotations counts in both."
        )
    table = Table(title=title, caption=caption)
    for column in ("image", "annotation", "class"):
        table.add_column(column)
    for column in ("mm²", "nuclei", "per mm²"):
        table.add_column(column, justify="right")
    for image in summary.images:
        rows: list[_Line] = [
            (region.name, region.class_name, (region.area_mm2, region.nuclei, region.per_mm2))
            for region in image.regions
        ]
        lines = _shortened(rows)
        for index, (name, class_name, (area, nuclei, density)) in enumerate(lines):
            if lines is not rows:  # densities do not add up
                density = nuclei / area if area else math.nan
            table.add_row(
                image.name if index == 0 else "",
                name,
                class_name or "–",
                _mm2(area),
                f"{nuclei:.0f}",
                f"{density:.0f}",
            )
    return table


def _mm2(area: float) -> str:
    """Format an area in mm²: with three decimals, or more if it has fewer than two digits then."""
    if math.isnan(area) or area == 0 or area >= 0.01:
        return f"{area:.3f}"
    return f"{Decimal(f'{area:.1e}'):f}"


def print_account(summary: RunSummary) -> None:
    """Print notes, doubts, seams, times and memory of this run, and the path of its record."""
    from qpnuclei.pipeline.summary import RECORD

    images = summary.images
    if not images:
        print_status(f"record: {summary.run_dir / RECORD}")
        return
    seconds: Counter[str] = Counter()
    waited: Counter[str] = Counter()
    done = summary.done_now
    for image in done:
        seconds.update(image.seconds)
        waited.update(image.waited)
    for image in images:
        for note in image.notes:
            print_warning(f"{image.name}: {note}")
        for doubt in image.doubts:
            line = f"doubtful: {image.name}: {doubt}"
            print_warning(line, style="yellow")
    stages = ", ".join(
        f"{stage} {time:.1f}" + (f" (waited {waited[stage]:.1f})" if stage in waited else "")
        for stage, time in seconds.items()
    )
    overlapping = f"; stages, which overlap: {stages}" if stages else ""
    memory = peak_memory_mib()
    names = " and ".join(model["name"] for model in summary.models)
    lines = [
        *([f"network: {names} on {summary.device}"] if summary.device else []),
        *_written_before(summary),
        *(_written(done) if done else []),
        f"seconds: {summary.seconds:.1f} in all{overlapping}",
        f"peak memory: {'not known' if memory is None else f'{memory:.0f} MiB'}",
        f"record: {summary.run_dir / RECORD}",
    ]
    for line in lines:
        print_status(line)


def _written_before(summary: RunSummary) -> list[str]:
    """Return a line with the number of images that were finished before."""
    if not summary.earlier:
        return []
    number = number_of(summary.resumed, "image")
    is_all = not summary.done_now and not summary.failures
    start = "nothing to do" if is_all else "done before"
    return [f"{start}: the nuclei of {number} are in the project already"]


def _written(images: Sequence[ImageResult]) -> list[str]:
    joined = number_of(sum(image.joined for image in images), "nucleus")
    return [
        f"seams: {joined} joined from several tiles; dropped: "
        f"{number_of(sum(i.covered for i in images), 'cut piece')}, "
        f"{number_of(sum(i.overlapping for i in images), 'duplicate')}",
        f"replaced: {number_of(sum(i.replaced for i in images), 'detection')} of earlier runs",
        *_kept(images),
    ]


def _kept(images: Sequence[ImageResult]) -> list[str]:
    """Return a line with the detections that were kept because a user locked them."""
    locked = sum(image.locked for image in images)
    found_again = sum(image.as_locked for image in images)
    if not locked:
        return []
    return [
        f"kept: {number_of(locked, 'locked detection')} of earlier runs; "
        f"not written in their place: {number_of(found_again, 'nucleus')}"
    ]


def print_failures(names: Sequence[str], images: int) -> None:
    """Print which of several images failed; each reason was printed when it happened."""
    if images == 1:
        return
    stderr.print(
        f"not analysed: {len(names)} of {images} images, for the reasons above: {_listed(names)}",
        style="bold red",
    )


def print_unreadable(slides: Sequence[str], of: int) -> None:
    """Print again, at the end of a run, which of several slides could not be read."""
    if slides and of > 1:
        stderr.print(
            f"not readable: {len(slides)} of {of} slides, for the reasons above: {_listed(slides)}",
            style="bold red",
        )


def print_empty(what: str, names: Sequence[str], images: int, remedy: str) -> None:
    """Print in one line which images have nothing to export, if any."""
    if names:
        number = f"{len(names)} of {number_of(images, 'image')}: {_listed(names)}"
        print_warning(f"no {what} in {number} ({remedy})")


def print_without_row(images: Sequence[ImageEntry], of: int, classes: Sequence[str] | None) -> None:
    """Print which images have no row in a table of counts because they have no annotations.

    Parameters
    ----------
    images : sequence of ImageEntry
    of : int
        Number of all images.
    classes : sequence of str or None
        Selected classes of annotations; None for all.
    """
    what = f"annotations of class {' or '.join(classes)}" if classes else "annotations"
    names = [entry.name for entry in images]
    command = "export --by image, without --roi," if classes else "export --by image"
    print_empty(what, names, of, f"{command} counts the analysed area of each")


def _listed(names: Sequence[str]) -> str:
    """Return the first names in one line, and how many more there are."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"{', '.join(names[:MOST_LISTED])}{more}"


def print_check(check: Check) -> None:
    """Print one finding of `qpnuclei.doctor`."""
    mark = {"OK": ("ok  ", "green"), "NOTE": ("note", "yellow"), "BAD": ("BAD ", "red")}
    line = Text.assemble(mark[check.status.name], in_one_line(f" {check.name}: {check.found}"))
    stdout.print(line)
    if check.remedy:
        stdout.print(f"     → {check.remedy}")


def info_table(content: dict[str, Any]) -> Group:
    """Return the output of `describe_project`, image by image."""
    heading = (
        f"{content['project']} (QuPath {content['version'] or 'unknown'}, "
        f"{content['backend']} backend)"
    )
    parts: list[Text | Table] = [Text(in_one_line(heading), style="bold")]
    for image in content["images"]:
        parts.append(Text(f"\n{image['id']}: {in_one_line(image['name'])}", style="bold"))
        parts.append(Text(f"  {in_one_line(_pixels(image))}"))
        if image["path"] is None:
            parts.append(Text(f"  missing: {in_one_line(', '.join(image['uris']))}", style="red"))
        if image["transforms"]:
            kinds = in_one_line(", ".join(image["transforms"]))
            parts.append(Text(f"  transformed ({kinds}): not supported by run", style="red"))
        if "error" in image:
            hint = f" ({image['hint']})" if image["hint"] else ""
            parts.append(Text(in_one_line(f"  {image['error']}{hint}"), style="red"))
            continue
        table = Table("class", box=None, padding=(0, 2))
        for column in ("annotations", "mm²", "detections"):
            table.add_column(column, justify="right")
        for name in sorted({*image["annotations"], *image["detections"]}):
            row = image["annotations"].get(name, {"count": 0, "area_mm2": None})
            area = "–" if row["area_mm2"] is None else _mm2(row["area_mm2"])
            count = image["detections"].get(name, 0)
            table.add_row(name or "unclassified", str(row["count"]), area, str(count))
        parts.append(table if table.rows else Text("  no annotations, no detections"))
        if image["tma_cores"]:
            parts.append(
                Text(f"  {image['tma_cores']} TMA cores, {image['missing_tma_cores']} missing")
            )
        if image["detections_by_qpnuclei"]:
            parts.append(
                Text(f"  {number_of(image['detections_by_qpnuclei'], 'detection')} by qpnuclei")
            )
    return Group(*parts)


def certainty_table(images: Sequence[OwnNuclei], steps: Sequence[float]) -> Table:
    """Return the nuclei by qpnuclei that stay in each image for each minimum certainty."""
    table = Table("image", title="nuclei by qpnuclei that stay for each --min-certainty")
    for column in ("now", *(f"{step:g}" for step in steps)):
        table.add_column(column, justify="right")
    for own in images:
        stay = [str(own.staying(step)) for step in steps]
        table.add_row(own.entry.name, str(len(own)), *stay)
    return table


def _pixels(image: dict[str, Any]) -> str:
    size = f"{image['width']} x {image['height']} px" if image["width"] else "size unknown"
    width, height = image["pixel_width_um"], image["pixel_height_um"]
    scale = "not calibrated"
    if width is not None:
        scale = f"{width:.4g} x {height:.4g} µm/px from {image['pixel_size_from']}"
    kind = image.get("type") or "type not set"
    stains = image.get("stains") or "no stains set"
    return f"{size}, {scale}, {kind} ({stains}), {image['server']}"
