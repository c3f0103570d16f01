"""An HTML page of images with their nuclei, coloured by kind of match.

The page is one self-contained file. Images are embedded as JPEG, and outlines are SVG above them:
they stay sharp, and each kind can be switched off.
"""

from __future__ import annotations

from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image
from scipy import ndimage
from skimage.measure import find_contours

from qpnuclei.evaluation.agreement import Agreement, Kind, classify
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.evaluation.report import COLUMNS, Report, format_score
from qpnuclei.evaluation.scoring import ScoredImage
from qpnuclei.report.pictures import PALETTE, embedded, path_data, scale_bar
from qpnuclei.report.pictures import outlines as area_outlines

_BLUE, _VERMILION, _GREEN, _YELLOW, _SKY, _ORANGE, _ = PALETTE

#: Errors stand out from found nuclei, with any kind of colour vision.
COLOURS = {
    Kind.FOUND: _GREEN,
    Kind.MISSED: _BLUE,
    Kind.FALSE: _VERMILION,
    Kind.SPLIT: _SKY,
    Kind.MERGED: _YELLOW,
    Kind.INEXACT: _ORANGE,
}

_MEANING = {
    Kind.FOUND: "found: annotated and predicted outline share more than half (IoU > 0.5)",
    Kind.MISSED: "missed: annotated, nothing predicted there",
    Kind.FALSE: "false: predicted, nothing annotated there",
    Kind.SPLIT: "split: several predictions in one annotated nucleus",
    Kind.MERGED: "merged: one prediction over several annotated nuclei",
    Kind.INEXACT: "inexact: one to one, but outlines differ too much (IoU up to 0.5)",
}

_MAX_PX = 1000
#: Tolerance for simplified outlines. It smooths steps of one pixel in a slanted side, but keeps the
#: corners of a square.
_TOLERANCE_PX = 0.3

_TEMPLATE = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
).from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))


def evaluation_page(report: Report, most_pictures: int = 20) -> str:
    """Return the HTML page of an evaluation.

    Parameters
    ----------
    report : Report
    most_pictures : int
        Largest number of images to show: the worst, the best, and others at equal steps of the rank
        by AJI.

    Raises
    ------
    qpnuclei.errors.FormatError
        If an image cannot be read.
    """
    ranked = sorted(report.result.images, key=lambda result: result.scores.AJI)
    count = min(most_pictures, len(ranked))
    shown = [ranked[i] for i in np.linspace(0, len(ranked) - 1, count).round().astype(int)]
    return _TEMPLATE.render(
        report=report,
        columns=COLUMNS,
        kinds=list(Kind),
        colours=COLOURS,
        meaning=_MEANING,
        score=format_score,
        shown=[_picture(result) for result in shown],
    )


def _picture(result: ScoredImage) -> dict[str, object]:
    rgb, true = result.image.read()
    height, width = true.shape
    return {
        "name": result.image.name,
        "scores": result.scores,
        "errors": result.errors,
        "width": width,
        "height": height,
        "url": _embedded(rgb),
        "scale": scale_bar(width * result.mpp),
        "border": area_outlines([result.image.border], (0, 0), (1, 1)),
        "paths": _paths(classify(true, label_map(result.nuclei.polygons(), true.shape))),
    }


def _embedded(rgb: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(rgb)
    picture.thumbnail((_MAX_PX, _MAX_PX))
    return embedded(picture, "JPEG")


def _paths(agreement: Agreement) -> list[dict[str, str]]:
    """Return SVG paths, one for each kind of predicted and of annotated nuclei.

    Found nuclei come first, so that errors are drawn above them.
    """
    predicted, annotated = outlines(agreement.predicted), outlines(agreement.true)
    paths = []
    for kind in Kind:
        for classes, rings, kinds in (
            (f"{kind}", predicted, agreement.predicted_kind),
            (f"{kind} annotated", annotated, agreement.true_kind),
        ):
            if classes == f"{Kind.FOUND} annotated":
                classes += " outlines"
            data = "".join(
                path_data(ring) for ring, k in zip(rings, kinds, strict=True) if k is kind
            )
            if data:
                paths.append({"kind": kind, "classes": classes, "data": data})
    return paths


def outlines(labels: npt.NDArray[np.int32]) -> list[npt.NDArray[np.float64]]:
    """Return the longest outline of each label of a map with consecutive labels.

    Returns
    -------
    list of (V, 2) float64 ndarray
        x and y in px, where pixel (0, 0) covers 0..1; closed and simplified.
    """
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = np.pad((labels[box] == label).astype(np.float32), 1)
        contours = find_contours(mask, 0.5)  # type: ignore[no-untyped-call]
        ring = max(contours, key=len)
        # The mask is padded by one pixel, and contours refer to pixel centres.
        xy = ring[:, ::-1] + (box[1].start - 0.5, box[0].start - 0.5)
        line = shapely.simplify(shapely.LineString(xy), _TOLERANCE_PX)
        found.append(shapely.get_coordinates(line))
    return found
