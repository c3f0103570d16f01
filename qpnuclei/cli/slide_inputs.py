"""The inputs of a run of slides, and the checks before a project is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.cli.running import options_of
from qpnuclei.errors import UsageError
from qpnuclei.system.files import resolved

if TYPE_CHECKING:
    from qpnuclei.qupath.model import ImageEntry, Project
    from qpnuclei.qupath.pixel_size import AskedMpp
    from qpnuclei.qupath.results_folder import ResultsFolder


@dataclass(frozen=True)
class SlideInputs:
    """The slides of a command, and the images that the results folder already has.

    Parameters
    ----------
    folder : ResultsFolder
    slides : sequence of Path
        One file of each slide; that of its image, if the project has one.
    project : Project or None
        Project of the results folder; None if there is none yet.
    new : mapping of str to Path
        Slides that the project does not have yet, by their future image names.
    patterns : sequence of str
        Patterns of ``--image``; empty for all images.
    """

    folder: ResultsFolder
    slides: Sequence[Path]
    project: Project | None
    new: Mapping[str, Path]
    patterns: Sequence[str]

    @classmethod
    def of(
        cls,
        folder: ResultsFolder,
        slides: Sequence[Path],
        images: Sequence[str],
        image_root: Path | None,
    ) -> SlideInputs:
        """Find out which slides the results folder has already."""
        from qpnuclei.qupath.adding import files_of
        from qpnuclei.qupath.results_folder import named_new_ones
        from qpnuclei.slides.files import one_per_slide

        project = folder.project(image_root)
        existing = [] if project is None else project.images
        given = one_per_slide(slides, files_of(existing))
        return cls(folder, given, project, named_new_ones(existing, given), images)

    @property
    def images(self) -> Sequence[ImageEntry]:
        """All images of the project, also of slides that this command does not name."""
        return [] if self.project is None else self.project.images

    @cached_property
    def chosen(self) -> list[ImageEntry]:
        """The images of the project that ``--image`` selects."""
        from qpnuclei.qupath.image_names import images_called

        return images_called(self.images, self.patterns)

    @cached_property
    def chosen_new(self) -> dict[str, Path]:
        """The new slides that ``--image`` selects."""
        from qpnuclei.qupath.image_names import names_called

        known = [*(entry.name for entry in self.images), *self.new]
        names = names_called(known, self.patterns)
        return {name: path for name, path in self.new.items() if name in names}

    def pixel_sizes(self, mpp: float | None, table: Path | None) -> AskedMpp:
        """Return the pixel sizes that the user gave.

        Parameters
        ----------
        mpp : float or None
            µm/px of the images that ``--image`` selects, of a single slide, or otherwise of slides
            without a pixel size.
        table : Path or None
            The table of ``--mpp-table``; it takes precedence over `mpp`.

        Raises
        ------
        NotFoundError, FormatError, UsageError
            If the table is missing or wrong.
        """
        from qpnuclei.qupath.pixel_size import AskedMpp, mpp_of_images, mpp_rows

        is_for_missing = not self.patterns and len(self.slides) > 1
        listed: dict[str | Path, float] = {}
        if table is not None:
            names = [name for _, name, _ in self._all_images]
            listed = mpp_of_images(mpp_rows(table), names, self._called)
        chosen = {entry.id for entry in self.chosen}
        by_id: dict[str, float] = {}
        for entry in self.images:
            is_chosen = entry.id in chosen if self.patterns else self._is_given(entry)
            is_kept = is_for_missing and entry.calibration.mpp_xy is not None
            given = listed.get(entry.id, mpp if is_chosen and not is_kept else None)
            if given is not None:
                by_id[entry.id] = given
        of_new: dict[str, float] = {}
        for name, path in self.new.items():
            given = listed.get(path, mpp if self.patterns and name in self.chosen_new else None)
            if given is not None:
                of_new[name] = given
        return AskedMpp(None if self.patterns else mpp, is_for_missing, by_id, of_new)

    @cached_property
    def _all_images(self) -> list[tuple[str | Path, str, Path | None]]:
        """The entry ID of each image, or the path of a new slide; its name, and its file."""
        return [
            *((entry.id, entry.name, entry.path) for entry in self.images),
            *((path, name, path) for name, path in self.new.items()),
        ]

    def _called(self, name: str) -> list[str | Path]:
        """Return the images with a name or, if there are none, those whose file has this name."""
        from qpnuclei.system.unicode_forms import nfc

        wanted = nfc(name)
        named = [image for image, own, _ in self._all_images if nfc(own) == wanted]
        return named or [
            image for image, _, path in self._all_images if path and nfc(path.name) == wanted
        ]

    def warn_of_kept_sizes(self, asked: AskedMpp, images: Sequence[ImageEntry]) -> None:
        """Warn about slides that keep their own pixel size although ``--mpp`` is given.

        Parameters
        ----------
        images : sequence of ImageEntry
            Images that existed before, and images of the new slides.
        """
        from qpnuclei.qupath.pixel_size import warn_of_kept_sizes

        paths = {entry.path for entry in self.images}
        given = [*filter(self._is_given, images)]
        existing = [entry for entry in given if entry.path in paths]
        warn_of_kept_sizes(existing, [e for e in given if e.path not in paths], asked)

    @cached_property
    def _given(self) -> frozenset[Path]:
        return frozenset(map(resolved, self.slides))

    def _is_given(self, entry: ImageEntry) -> bool:
        return entry.path is not None and resolved(entry.path) in self._given


def refuse_early(inputs: SlideInputs, given: Mapping[str, Any]) -> None:
    """Check the arguments of a run by its slides before a project is made or extended.

    Parameters
    ----------
    given : mapping
        The arguments of `qpnuclei.cli.run.run`.

    Raises
    ------
    QpnucleiError
        If options choose nothing, or a model or device cannot be used.
    """
    from qpnuclei.pipeline.positivity import require_some_dab, without_dab
    from qpnuclei.pipeline.selection import choose_images

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
            "run without --roi options to analyse the tissue; or make a project with qpnuclei "
            "project create, and draw annotations in QuPath",
        )
    if not inputs.new:
        return  # the run of the project makes the other checks itself
    chosen = inputs.chosen
    if inputs.project is not None and not options.selection.tissue:
        chosen = choose_images(inputs.project, options.images, options.selection)
    if options.positive_thresholds and not chosen:
        raise without_dab()
    require_some_dab(chosen, options.positive_thresholds)
    if not given["dry_run"] and given["dask"] is None:
        from qpnuclei.pipeline.inference.computing import computing
        from qpnuclei.pipeline.inference.units import Conduct

        conduct = Conduct(unit_minutes=given["unit_minutes"], unit_gib=given["unit_gib"])
        with computing(options, conduct):
            pass  # raises if a model cannot be loaded; a cluster loads it on its workers
