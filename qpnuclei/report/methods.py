"""A paragraph for the methods section of a paper, with its references."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from typing import Any

from qpnuclei._version import __version__
from qpnuclei.choices import DEFAULT_EXCLUDED
from qpnuclei.errors import number_of
from qpnuclei.models.metadata import NO_LABELS, NOT_STATED
from qpnuclei.models.registry import COARSE_ABOVE_MPP
from qpnuclei.report.runs import Run
from qpnuclei.segmentation.engine import views_of

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
_ATTENTION = "a network that learned from unlabelled tissue by the attention of a classifier"


def methods(
    runs: Sequence[tuple[Run, Set[int]]],
    unrecorded: int,
    images: Mapping[str | None, int],
    annotations: int,
    cores: int,
    classes: Sequence[str],
    stained: bool,
    *,
    otherwise: int,
    locked: int,
    foreign: int,
    filters: Mapping[tuple[float, tuple[str, ...], bool], int],
    counts_all: Collection[bool],
) -> tuple[str, list[str]]:
    """Return the paragraph and its numbered references.

    Parameters
    ----------
    runs : sequence of (Run, set of int)
        Runs that found the nuclei, and the numbers of the images in which they are; empty if the
        nuclei come from another program.
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
    locked : int
        Number of nuclei that a user has locked.
    foreign : int
        Number of counted nuclei that are detections of other programs.
    filters : mapping of (float, tuple of str, bool) to int
        Number of images from which less certain nuclei were removed, for each least certainty, the
        classes of annotations in which they were (none: everywhere), and whether a run followed.
    counts_all : collection of bool
        Whether all nuclei of chosen classes count, wherever they are, or only those in analysed
        areas: of each counted image.
    """
    areas = []
    if annotations or not cores:
        of = f" ({_classes(classes)})" if classes else ""
        areas.append(f"{number_of(annotations, 'annotation', grouped=True)}{of}")
    if cores:
        areas.append(number_of(cores, "TMA core", grouped=True))
    where = f"{' and '.join(areas)} on {_images(images)}"
    references: list[str] = []

    def cite(reference: str) -> str:
        if reference not in references:
            references.append(reference)
        return f"[{references.index(reference) + 1}]"

    sentences = _of_runs(runs, cite, are_all=not unrecorded)
    if otherwise:
        sentences.append(
            f"The thresholds do not hold for {number_of(otherwise, 'nucleus', grouped=True)}, "
            "whose classes are from earlier runs or given by hand."
        )
    for (least, of_classes, is_followed), many in filters.items():
        when = f"Before the last run{'s' * (many > 1)}" if is_followed else "Afterwards"
        where_removed = f" in annotations of {_classes(of_classes)}" if of_classes else ""
        sentences.append(
            f"{when}, nuclei{where_removed} with a mean attention below {least:g} were removed "
            f"from {number_of(many, 'image', grouped=True)}."
        )
    if locked:
        are = "is" if locked == 1 else "are"
        sentences.append(
            f"{number_of(locked, 'nucleus', grouped=True)} {are} locked in QuPath: runs and "
            "filters leave such nuclei as they are, whatever their settings."
        )
    if unrecorded:
        sentences.append(
            f"Nuclei of {number_of(unrecorded, 'image', grouped=True)} were segmented by a run "
            "of qpnuclei whose record is missing: name its model."
        )
    if (runs or unrecorded) and foreign:
        are = "is a detection" if foreign == 1 else "are detections"
        counted = number_of(foreign, "counted nucleus", "counted nuclei", grouped=True)
        sentences.append(f"{counted} {are} of other programs.")
    if not runs:
        sentences.append(
            f"Detections in a QuPath project {cite(_QUPATH)} were counted with qpnuclei "
            f"{__version__}."
        )
    sentences.append(
        f"Counts were taken in {where} of a QuPath project {cite(_QUPATH)}. A nucleus was counted "
        f"in every annotation that contains its centroid; densities refer to {_area(counts_all)}."
    )
    if stained:
        sentences.append(
            "Area and mean haematoxylin of each nucleus follow QuPath's definitions, stains "
            f"separated by colour deconvolution {cite(_DECONVOLUTION)}."
        )
    return " ".join(sentences), references


def _of_runs(
    runs: Sequence[tuple[Run, Set[int]]], cite: Callable[[str], str], *, are_all: bool
) -> list[str]:
    """Return the sentences about runs. Those with the same settings are described once.

    If these are not all runs, the sentences say which images and annotations they are about.
    """
    alike: dict[tuple[str, ...], list[tuple[Run, Set[int]]]] = {}
    for run, images in runs:
        settings = (_segmented(run, cite), *_settings(run))
        alike.setdefault(settings, []).append((run, images))
    sentences = []
    for (segmented, *others), group in alike.items():
        of = f" {_where(group)}" if len(alike) > 1 or not are_all else ""
        sentences += [f"Nuclei{of} {segmented}", *others]
    return sentences


def _where(runs: Sequence[tuple[Run, Set[int]]]) -> str:
    """Return which annotations of how many images some runs analysed."""
    chosen = [run.chosen_classes for run, _ in runs]
    names = list(dict.fromkeys(name for names in chosen for name in names))
    within = f"in annotations of {_classes(names)} " if all(chosen) else ""
    many = len(set[int]().union(*(images for _, images in runs)))
    return f"{within}on {number_of(many, 'image', grouped=True)}"


def _segmented(run: Run, cite: Callable[[str], str]) -> str:
    version = run.versions.get("qpnuclei") or __version__
    used = " and ".join(_model(model, cite) for model in run.models)
    plural = "s" if len(run.models) > 1 else ""
    return f"were segmented with qpnuclei {version}, model{plural} {used}."


def _settings(run: Run) -> Iterator[str]:
    """Yield a sentence for each setting of a run that changes counts and is not the default."""
    given = run.arguments
    if len(run.models) > 1:
        yield (
            "The pixel size of an image decided which of these models it was given (above "
            f"{COARSE_ABOVE_MPP} µm/px the coarser one)."
        )
    if given.get("mpp") is not None or given.get("mpp_by_image"):
        yield "Pixel sizes were given by hand."
    if run.selection.get("tissue") is True:
        yield "The analysed area was the tissue, which qpnuclei detected."
    if given.get("qc") is True:
        yield "Areas with pen, folds or tissue out of focus were detected by qpnuclei."
    excluded = run.selection.get("excluded")
    if isinstance(excluded, list) and tuple(excluded) != DEFAULT_EXCLUDED:
        if excluded:
            yield f"Annotations of {_classes([*map(str, excluded)])} were excluded."
        else:
            yield "No annotations were excluded."
    if isinstance(given.get("tta"), bool):
        yield (
            f"The network's maps of {views_of(True)} flipped and rotated views were averaged."
            if given["tta"]
            else "The network saw one view of each tile (no test-time augmentation)."
        )
    if (threshold := run.number("threshold")) is not None:
        yield f"Pixels with an attention above {threshold:g} were assigned to nuclei."
    if smallest := run.number("min_area_um2"):
        yield f"Nuclei smaller than {smallest:g} µm² were left out."
    if expansion := run.number("cell_expansion_um"):
        yield (
            f"Cells reach up to {expansion:g} µm beyond their nuclei, and halfway to the next one."
        )
    if given.get("on_existing") == "append":
        yield "Nuclei were added to those of earlier runs."
    elif given.get("on_existing") == "skip":
        yield "Areas that earlier runs had analysed were not analysed again."
    if thresholds := run.positive_thresholds:
        values = ", ".join(f"{value:g}" for value in thresholds)
        yield (
            f"Nuclei with a mean optical density of DAB of at least {values} are "
            f"{'positive' if len(thresholds) == 1 else '1+, 2+, 3+'}, others negative "
            "(experimental)."
        )


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {', '.join(names)}"


def _model(model: Mapping[str, Any], cite: Callable[[str], str]) -> str:
    """Return the name, the kind and the resolution of the model."""
    name, sha = str(model.get("name") or "unknown"), str(model.get("sha256") or "")
    kind = _learned(model)
    learned = f", {kind} {cite(_PAPER)}" if kind else ""
    mpp = model.get("mpp")
    at = f", at {mpp:g} µm/px" if isinstance(mpp, int | float) else ""
    hashed = f" (SHA-256 {sha[:12]}…)" if sha else ""
    return f"'{name}'{hashed}{learned}{at}"


def _area(counts_all: Collection[bool]) -> str:
    """Return the area that densities refer to."""
    if True not in counts_all:
        return "the analysed area"
    if False not in counts_all:
        return "the area of the annotation"
    return (
        "the analysed area, and in images with nuclei of other programs to the area of the "
        "annotation"
    )


def _learned(model: Mapping[str, Any]) -> str:
    """Return what kind of network a model is, and what it learned from; empty if unknown."""
    if model.get("family") == "attention":
        return _ATTENTION
    if model.get("family") != "student":
        return ""
    labels = model.get("labels")
    if labels == NO_LABELS:
        return "a network that was trained without outlined nuclei, on pseudo-labels"
    # Records of earlier runs, and some models, do not state it.
    drawn = " and on outlined nuclei" if labels and labels != NOT_STATED else ""
    return f"a network that was trained on pseudo-labels{drawn}"


def _images(by_type: Mapping[str | None, int]) -> str:
    """Return the number of images of each stain."""
    parts = [
        number_of(by_type[t], what, grouped=True) for t, what in _STAINED.items() if by_type.get(t)
    ]
    others = sum(by_type.values()) - sum(by_type.get(t, 0) for t in _STAINED)
    if others or not parts:
        parts.append(number_of(others, "other image" if parts else "image", grouped=True))
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
