"""A page to look at: every image with its nuclei, coloured by what became of them.

One HTML file that needs nothing else: images are JPEG within it, outlines are SVG above them, so
that they stay sharp and each kind can be switched off.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image
from scipy import ndimage
from skimage.measure import find_contours

from qpnuclei.evaluation.agreement import Agreement, Kind, classify
from qpnuclei.evaluation.evaluate import ImageResult
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.evaluation.report import COLUMNS, Report, format_score

#: Colours that differ from each other and from haematoxylin and eosin.
COLOURS = {
    Kind.FOUND: "#00c81e",
    Kind.MISSED: "#2846ff",
    Kind.FALSE: "#ff0000",
    Kind.SPLIT: "#ffe600",
    Kind.MERGED: "#ff00d4",
    Kind.INEXACT: "#00f0ff",
}

_MEANING = {
    Kind.FOUND: "found: annotated and predicted outline share more than half (IoU &gt; 0.5)",
    Kind.MISSED: "missed: annotated, nothing predicted there",
    Kind.FALSE: "false: predicted, nothing annotated there",
    Kind.SPLIT: "split: several predictions in one annotated nucleus",
    Kind.MERGED: "merged: one prediction over several annotated nuclei",
    Kind.INEXACT: "inexact: one to one, but outlines differ too much (IoU up to 0.5)",
}

_MAX_PX = 1000
_JPEG_QUALITY = 75
#: Outlines may be off by this much. A step of one pixel in a slanted side is smoothed away, the
#: corner of a square is not.
_TOLERANCE_PX = 0.3

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1080px;
  padding: 0 1rem; color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; }
td, th { border: 1px solid #ccc; padding: .2rem .5rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
td small { color: #555; display: block; white-space: nowrap; }
figure { margin: 2rem 0; } figcaption { margin-bottom: .3rem; }
svg.tissue { width: 100%; height: auto; display: block; }
svg path { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; }
svg .annotated { stroke-dasharray: 4 3; }
svg .missed { stroke-width: 3px; }
.legend { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ccc;
  padding: .4rem 0; z-index: 1; font-size: 13px; columns: 2; }
.legend label { display: block; break-inside: avoid; }
.swatch { display: inline-block; width: 1.4em; height: .7em; margin: 0 .4em; }
"""


def evaluation_page(report: Report, most_pictures: int = 20) -> str:
    """Return the HTML page of an evaluation.

    Parameters
    ----------
    report : Report
    most_pictures : int
        Show at most so many images, the worst and the best among them, evenly by rank of AJI.

    Raises
    ------
    qpnuclei.errors.FormatError
        If an image cannot be read again.
    """
    ranked = sorted(report.result.images, key=lambda result: result.scores.AJI)
    count = min(most_pictures, len(ranked))
    shown = [ranked[i] for i in np.linspace(0, len(ranked) - 1, count).round().astype(int)]
    title = escape(report.title)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    kinds = "".join(_switch(kind) for kind in Kind)
    hiding = "".join(
        f"body:has(#show-{name}:not(:checked)) .{name} {{ display: none; }}\n"
        for name in (*Kind, "outlines")
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>{_STYLE}{hiding}</style></head><body>
<h1>{title}</h1>
<p>{len(ranked)} images, {sum(r.scores.true_count for r in ranked)} annotated nuclei. Mean over
images, below it the 95 % bootstrap interval over images. For AHD, less is better; for the count
error, nearer to 0; for all others, more. A difference is beyond chance where its interval does
not hold 0.</p>
{_means(report)}
<ul>{notes}</ul>
<h2>What became of the annotated nuclei</h2>
{_errors(report)}
<p>"False" are predictions beside the annotated nuclei; the other columns add up to 100 % of
these.</p>
<h2>Images, from the lowest AJI to the highest</h2>
<p>{len(shown)} of {len(ranked)} are shown. Solid lines are predicted, dashed lines annotated.</p>
<div class="legend">{kinds}
<label><input type="checkbox" id="show-outlines"><span class="swatch"
style="border-bottom: 2px dashed {COLOURS[Kind.FOUND]}; height: .3em"></span>also the annotated
outlines of what was found</label></div>
{"".join(_figure(result) for result in shown)}
</body></html>
"""


def _switch(kind: Kind) -> str:
    return (
        f'<label><input type="checkbox" id="show-{kind}" checked>'
        f'<span class="swatch" style="background: {COLOURS[kind]}"></span>{_MEANING[kind]}</label>'
    )


def _means(report: Report) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for _, heading, _ in COLUMNS)
    body = ""
    for name, cells in report.rows():
        columns = (cell.partition(" ") for cell in cells)
        body += f"<tr><td>{escape(name)}</td>" + "".join(
            f"<td>{value}<small>{interval}</small></td>" for value, _, interval in columns
        )
    return f"<table><tr><th>method</th>{head}</tr>{body}</table>"


def _errors(report: Report) -> str:
    head = "".join(f"<th>{kind}</th>" for kind in Kind)
    body = ""
    for evaluation in (report.result, *report.others):
        total = max(1, sum(result.scores.true_count for result in evaluation.images))
        body += f"<tr><td>{escape(evaluation.name)}</td>" + "".join(
            f"<td>{count}<small>{count / total:.0%}</small></td>"
            for count in evaluation.errors.values()
        )
    return f"<table><tr><th>method</th>{head}</tr>{body}</table>"


def _figure(result: ImageResult) -> str:
    rgb, true = result.image.read()
    height, width = true.shape
    agreement = classify(true, label_map(result.nuclei.polygons(), true.shape))
    name, scores = escape(result.image.name), result.scores
    errors = ", ".join(f"{count} {kind}" for kind, count in result.errors.items())
    return f"""<figure id="{name}"><figcaption><b>{name}</b>: AJI {format_score(scores.AJI, 3)},
ADC {format_score(scores.ADC, 3)}, PQ {format_score(scores.PQ, 3)}; {scores.true_count} annotated,
{scores.predicted_count} predicted ({errors})</figcaption>
<svg class="tissue" viewBox="0 0 {width} {height}"><image width="{width}" height="{height}"
href="data:image/jpeg;base64,{_jpeg(rgb)}"/>
{_paths(agreement)}</svg></figure>
"""


def _jpeg(rgb: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(rgb)
    picture.thumbnail((_MAX_PX, _MAX_PX))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()


def _paths(agreement: Agreement) -> str:
    """Return SVG paths, one for each kind and side; what went wrong is drawn above what did not."""
    predicted, annotated = outlines(agreement.predicted), outlines(agreement.true)
    paths = []
    for kind in Kind:
        for css, rings, kinds in (
            (f"{kind}", predicted, agreement.predicted_kind),
            (f"{kind} annotated", annotated, agreement.true_kind),
        ):
            if css == f"{Kind.FOUND} annotated":
                css += " outlines"
            path = "".join(
                path_data(ring) for ring, k in zip(rings, kinds, strict=True) if k is kind
            )
            if path:
                paths.append(f'<path class="{css}" stroke="{COLOURS[kind]}" d="{path}"/>')
    return "\n".join(paths)


def outlines(labels: npt.NDArray[np.int32]) -> list[npt.NDArray[np.float64]]:
    """Return the longest outline of each label of a map with consecutive labels.

    Returns
    -------
    list of (V, 2) float64 ndarray
        x and y in px, pixel (0, 0) covering 0..1; closed, and simplified.
    """
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = np.pad((labels[box] == label).astype(np.float32), 1)
        contours = find_contours(mask, 0.5)  # type: ignore[no-untyped-call]
        ring = max(contours, key=len)
        # The mask's padding is one pixel, its coordinates are those of pixel centres.
        xy = ring[:, ::-1] + (box[1].start - 0.5, box[0].start - 0.5)
        line = shapely.simplify(shapely.LineString(xy), _TOLERANCE_PX)
        found.append(shapely.get_coordinates(line))
    return found


def path_data(ring: npt.NDArray[np.float64]) -> str:
    """Return a closed ring as SVG path data in tenths of a px, all but its start relative."""
    tenths = np.rint(ring[:-1] * 10).astype(int)
    first, steps = tenths[0] / 10, np.diff(tenths, axis=0) / 10
    return f"M{first[0]:g} {first[1]:g}l{_joined(steps)}z"


def _joined(steps: Sequence[Sequence[float]] | npt.NDArray[np.float64]) -> str:
    return " ".join(f"{x:g} {y:g}" for x, y in steps)
