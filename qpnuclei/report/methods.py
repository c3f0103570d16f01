"""A paragraph for the methods section of a paper, with its references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qpnuclei._version import __version__
from qpnuclei.errors import number_of
from qpnuclei.models.registry import COARSE_ABOVE_MPP
from qpnuclei.report.runs import Run

_PAPER = (
    "Sahasrabudhe M, Christodoulidis S, Salgado R, Michiels S, Loi S, André F, Paragios N, "
    "Vakalopoulou M. Self-Supervised Nuclei Segmentation in Histopathological Images Using "
    "Attention. MICCAI 2020. doi:10.1007/978-3-030-59722-1_38"
)
_QUPATH = (
    "Bankhead P, Loughrey MB, Fernández JA, et al. QuPath: Open source software for digital "
    "pathology image analysis. Scientific Reports 2017;7:16878. doi:10.1038/s41598-017-17204-5"
)
_DECONVOLUTION = (
    "Ruifrok AC, Johnston DA. Quantification of histochemical staining by color deconvolution. "
    "Analytical and Quantitative Cytology and Histology 2001;23:291–299."
)
#: Names of images by QuPath's image type. For other types the text gives only the number.
_STAINED = {"BRIGHTFIELD_H_E": "H&E image", "BRIGHTFIELD_H_DAB": "H-DAB image"}
_LEARNED = {
    "attention": "a network that learned from unlabelled tissue by the attention of a classifier",
    "student": "a network that was trained without outlined nuclei, on pseudo-labels",
}


def methods(
    runs: Sequence[Run],
    unrecorded: int,
    images: Mapping[str | None, int],
    annotations: int,
    cores: int,
    classes: Sequence[str],
    stained: bool,
    otherwise: int = 0,
) -> tuple[str, list[str]]:
    """Return the paragraph and its numbered references.

    Parameters
    ----------
    runs : sequence of Run
        Runs that found the nuclei; empty if the nuclei come from another program.
    unrecorded : int
        Number of images whose nuclei are from a run without a record.
    images : mapping of str or None to int
        Number of counted images of each of QuPath's image types.
    annotations, cores : int
        Numbers of counted annotations and TMA cores.
    classes : sequence of str
        Classes of the annotations.
    stained : bool
        Whether haematoxylin was measured.
    otherwise : int
        Number of nuclei that have another class than the thresholds of these runs give.
    """
    areas = []
    if annotations or not cores:
        plural = "es" if len(classes) > 1 else ""
        of = f" (class{plural} {', '.join(classes)})" if classes else ""
        areas.append(f"{number_of(annotations, 'annotation', grouped=True)}{of}")
    if cores:
        areas.append(number_of(cores, "TMA core", grouped=True))
    where = f"{' and '.join(areas)} on {_images(images)}"
    references: list[str] = []

    def cite(reference: str) -> str:
        if reference not in references:
            references.append(reference)
        return f"[{references.index(reference) + 1}]"

    sentences = []
    # Runs with the same settings are described once.
    described: list[list[str]] = []
    for run in runs:
        of_run: list[str] = []
        version = run.versions.get("qpnuclei") or __version__
        used = " and ".join(_model(model, cite) for model in run.models)
        plural = "s" if len(run.models) > 1 else ""
        of_run.append(f"Nuclei were segmented with qpnuclei {version}, model{plural} {used}.")
        if plural:
            of_run.append(
                f"The pixel size of an image decided which of these models it was given "
                f"(above {COARSE_ABOVE_MPP} µm/px the coarser one)."
            )
        expansion = run.arguments.get("cell_expansion_um")
        if isinstance(expansion, int | float) and expansion > 0:
            of_run.append(
                f"Cells reach up to {expansion:g} µm beyond their nuclei, and halfway to the next "
                "one."
            )
        thresholds = run.positive_thresholds
        if thresholds:
            values = ", ".join(f"{value:g}" for value in thresholds)
            of_run.append(
                f"Nuclei with a mean optical density of DAB of at least {values} are "
                f"{'positive' if len(thresholds) == 1 else '1+, 2+, 3+'}, others negative "
                "(experimental)."
            )
        if of_run not in described:
            described.append(of_run)
            sentences += of_run
    if otherwise:
        sentences.append(
            f"The thresholds do not hold for {number_of(otherwise, 'nucleus', grouped=True)}, "
            "whose classes are from earlier runs or given by hand."
        )
    if unrecorded:
        sentences.append(
            f"The nuclei of {number_of(unrecorded, 'image', grouped=True)} were segmented by a run "
            "of qpnuclei whose record is missing: name its model."
        )
    if not runs:
        sentences.append(
            f"Detections in a QuPath project {cite(_QUPATH)} were counted with qpnuclei "
            f"{__version__}."
        )
    sentences.append(
        f"Counts were taken in {where} of a QuPath project {cite(_QUPATH)}. A nucleus was counted "
        "in every annotation that contains its centroid; densities refer to the analysed area."
    )
    if stained:
        sentences.append(
            "Area and mean haematoxylin of each nucleus follow QuPath's definitions, stains "
            f"separated by colour deconvolution {cite(_DECONVOLUTION)}."
        )
    return " ".join(sentences), references


def _model(model: Mapping[str, Any], cite: Callable[[str], str]) -> str:
    """Return the name, the kind and the resolution of the model."""
    name, sha = str(model.get("name") or "unknown"), str(model.get("sha256") or "")
    family = _LEARNED.get(str(model.get("family") or ""))
    learned = f", {family} {cite(_PAPER)}" if family else ""
    mpp = model.get("mpp")
    at = f", at {mpp:g} µm/px" if isinstance(mpp, int | float) else ""
    hashed = f" (SHA-256 {sha[:12]}…)" if sha else ""
    return f"'{name}'{hashed}{learned}{at}"


def _images(by_type: Mapping[str | None, int]) -> str:
    """Return the number of images of each stain."""
    parts = [
        number_of(by_type[t], what, grouped=True) for t, what in _STAINED.items() if by_type.get(t)
    ]
    others = sum(by_type.values()) - sum(by_type.get(t, 0) for t in _STAINED)
    if others or not parts:
        parts.append(number_of(others, "other image" if parts else "image", grouped=True))
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
