"""What a run of slides concerns, and what is refused before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.cli.running import options_of
from qpnuclei.errors import UsageError

if TYPE_CHECKING:
    from qpnuclei.qupath.model import ImageEntry, Project
    from qpnuclei.qupath.pixel_size import AskedMpp
    from qpnuclei.qupath.results import ResultsFolder


@dataclass(frozen=True)
class SlideInputs:
    """The slides that are given, and the images that the folder of results has.

    Parameters
    ----------
    folder : ResultsFolder
    slides : sequence of Path
    project : Project or None
        Of the folder, if there is one yet.
    new : mapping of str to Path
        Slides that it does not have yet, by the names that they will have.
    patterns : sequence of str
        What ``--image`` names; all images without it.
    """

    folder: ResultsFolder
    slides: Sequence[Path]
    project: Project | None
    new: Mapping[str, Path]
    patterns: Sequence[str]

    @classmethod
    def of(
        cls, folder: ResultsFolder, slides: Sequence[Path], images: Sequence[str]
    ) -> SlideInputs:
        """Find out which slides the folder has already."""
        from qpnuclei.qupath.results import named_new_ones

        project = folder.project()
        there = [] if project is None else project.images
        return cls(folder, slides, project, named_new_ones(there, slides), images)

    @property
    def images(self) -> Sequence[ImageEntry]:
        """The images that are there, also of slides that are not given now."""
        return [] if self.project is None else self.project.images

    @cached_property
    def chosen(self) -> list[ImageEntry]:
        """The images that are there and meant."""
        from qpnuclei.qupath.regions import images_called

        return images_called(self.images, self.patterns)

    @cached_property
    def chosen_new(self) -> dict[str, Path]:
        """The new slides that are meant."""
        from qpnuclei.qupath.regions import is_called

        return {name: path for name, path in self.new.items() if is_called(name, self.patterns)}

    def pixel_sizes(self, mpp: float | None, table: Path | None) -> AskedMpp:
        """Return what is said of pixel sizes: by ID of images, by name of new slides.

        Parameters
        ----------
        mpp : float or None
            µm/px of the images that ``--image`` names, of a single slide, or else of slides
            without a pixel size.
        table : Path or None
            The table of ``--mpp-table``; it goes before `mpp`.

        Raises
        ------
        NotFoundError, FormatError, UsageError
            If the table is missing or wrong.
        """
        from qpnuclei.qupath.pixel_size import AskedMpp, project_mpp, read_named_mpp

        is_for_missing = not self.patterns and len(self.slides) > 1
        listed: dict[str, float] = {}
        if table is not None:
            names = [*(entry.name for entry in self.images), *self.new]
            listed = read_named_mpp(table, names, {path.name for path in self.slides})
        by_image: dict[str, float | None] = {}
        chosen = {entry.id for entry in self.chosen}
        for entry in self.images:
            by_image[entry.id] = listed.get(entry.name)
            if by_image[entry.id] is None and entry.path is not None:
                by_image[entry.id] = listed.get(entry.path.name)
            is_meant = entry.id in chosen if self.patterns else self._is_given(entry)
            is_kept = is_for_missing and project_mpp(entry) is not None
            if by_image[entry.id] is None and is_meant and not is_kept:
                by_image[entry.id] = mpp
        for name, path in self.new.items():
            named = mpp if self.patterns and name in self.chosen_new else None
            by_image[name] = listed.get(name, listed.get(path.name, named))
        said = {image: value for image, value in by_image.items() if value is not None}
        return AskedMpp(None if self.patterns else mpp, is_for_missing, said)

    def changed_pixel_sizes(self, asked: AskedMpp) -> dict[str, float]:
        """Return by ID what is said of images that are there, where a run would take another."""
        from qpnuclei.qupath.results import changed_pixel_sizes

        return changed_pixel_sizes(self.images, asked.by_image)

    def warn_of_kept_sizes(self, asked: AskedMpp, images: Sequence[ImageEntry]) -> None:
        """Say where ``--mpp`` is not used, as it is for slides without a pixel size.

        Parameters
        ----------
        images : sequence of ImageEntry
            Those that were there, and those that were made of new slides.
        """
        from qpnuclei.qupath.pixel_size import project_mpp
        from qpnuclei.qupath.results import warn_of_kept_sizes

        if asked.mpp is None or not asked.only_missing:
            return
        there = {entry.path for entry in self.images}
        sizes = []
        for entry in filter(self._is_given, images):
            said = asked.by_image.get(entry.id) if entry.path in there else None
            sizes.append(project_mpp(entry) if said is None else (said, said))
        warn_of_kept_sizes(sizes, asked.mpp)

    @cached_property
    def _given(self) -> frozenset[Path]:
        return frozenset(path.resolve() for path in self.slides)

    def _is_given(self, entry: ImageEntry) -> bool:
        return entry.path is not None and entry.path.resolve() in self._given


def refuse_early(inputs: SlideInputs, given: Mapping[str, Any]) -> None:
    """Refuse what cannot be run, before a project is made or extended.

    Parameters
    ----------
    given : mapping
        The arguments of `qpnuclei.cli.run.run`.

    Raises
    ------
    QpnucleiError
        If options contradict each other or choose nothing, or a model, device or backend cannot be
        used.
    """
    from qpnuclei.pipeline.positivity import require_some_dab, without_dab
    from qpnuclei.pipeline.selection import choose_images
    from qpnuclei.qupath.project import choose_backend
    from qpnuclei.segmentation.engine import engine_specs

    options = options_of(dict(given))
    if not (inputs.chosen or inputs.chosen_new):
        names = [*(entry.name for entry in inputs.images), *inputs.new]
        raise UsageError(
            f"no slide matches {' or '.join(map(repr, inputs.patterns))}",
            f"slides: {', '.join(names)}",
        )
    if inputs.project is None and not options.selection.tissue:
        raise UsageError(
            "new slides have no annotations to choose",
            "run them without --roi options, which finds the tissue; or make a project with "
            "qpnuclei project create, and draw annotations in QuPath",
        )
    if not inputs.new:
        return  # a run of a project that is there refuses the rest itself
    choose_backend(given["backend"])
    engine_specs(options.models)
    chosen = inputs.chosen
    if inputs.project is not None and not options.selection.tissue:
        chosen = choose_images(inputs.project, options.images, options.selection)
    if options.positive_thresholds and not chosen:
        raise without_dab()
    require_some_dab(chosen, options.positive_thresholds)
    if not given["dry_run"]:
        from qpnuclei.pipeline.inference.computing import check_computing
        from qpnuclei.pipeline.inference.units import Conduct

        conduct = Conduct(
            dask=given["dask"], unit_minutes=given["unit_minutes"], unit_gib=given["unit_gib"]
        )
        check_computing(options, conduct)
