"""What ``plan.json`` says of an image's slide and annotations."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import shapely
from msgspec import Struct
from msgspec.structs import asdict

from qpnuclei.errors import NotFoundError, QpnucleiError, SlideError
from qpnuclei.qupath.model import Annotation
from qpnuclei.qupath.regions import Region
from qpnuclei.slides.fingerprint import slide_fingerprint
from qpnuclei.slides.slide import Slide, open_slide
from qpnuclei.system.unicode_forms import unicode_forms

_NOT_IN_NAMES = re.compile(r"[^\w\-. ]")


def check_file_name(name: str) -> None:
    """Raise a ValueError if a name of the plan would lead out of its folder."""
    if not name.strip(". ") or _NOT_IN_NAMES.search(name):
        raise ValueError(f"{name!r} is not a file name")


class PlannedSlide(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A slide, and how it is opened; its fingerprint tells whether it is still the same."""

    path: str
    bytes: int
    fingerprint: str
    width: int
    height: int
    crop_to_bounds: bool = False
    series: int | None = None
    apply_icc: bool = False

    @classmethod
    def of(cls, slide: Slide) -> PlannedSlide:
        """Describe an open slide."""
        return cls(
            path=str(slide.path.absolute()),
            bytes=slide.path.stat().st_size,
            fingerprint=slide_fingerprint(slide.path),
            width=slide.width,
            height=slide.height,
            crop_to_bounds=slide.crop_to_bounds,
            series=slide.series,
            apply_icc=slide.apply_icc,
        )

    @property
    def content(self) -> dict[str, Any]:
        """What a result depends on: everything but the path."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    def open(self, elsewhere: Path | None = None) -> Slide:
        """Open it where the plan says, or by its name and content below another folder.

        Raises
        ------
        NotFoundError
            If it is not there.
        SlideError
            If it is not the slide that was planned, or cannot be read.
        """
        path = Path(self.path)
        if elsewhere is not None:
            places = self._of_this_name(elsewhere)
        elif path.exists():
            places = [path]
        else:
            raise NotFoundError(
                f"the slide {path} is not here", "name the folder it is in with --slides-from"
            )
        return open_slide(
            self._of_this_content(places),
            crop_to_bounds=self.crop_to_bounds,
            series=self.series,
            apply_icc=self.apply_icc,
        )

    def _of_this_name(self, folder: Path) -> list[Path]:
        name = re.split(r"[\\/]", self.path)[-1]
        forms = unicode_forms(name)
        found = [folder / form for form in forms]
        for form in forms:
            found += sorted(folder.rglob(glob.escape(form)))
        places = [place for place in dict.fromkeys(found) if place.is_file()]
        if not places:
            raise NotFoundError(f"no slide {name} in {folder}", "copy it there")
        return places

    def _of_this_content(self, places: Sequence[Path]) -> Path:
        unreadable: list[QpnucleiError] = []
        for place in places:
            try:
                if slide_fingerprint(place) == self.fingerprint:
                    return place
            except QpnucleiError as error:
                unreadable.append(error)
        if unreadable:
            raise unreadable[0]
        others = len(places) - 1
        who = f"{places[0]} and {others} more of this name are" if others else f"{places[0]} is"
        raise SlideError(f"{who} not the slide that was planned", "plan the run again")


class PlannedAnnotation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of a region's annotation.

    Parameters
    ----------
    outline : str or None
        As WKB in hexadecimal digits; None if it is the geometry of the region.
    """

    handle: int
    id: UUID | None
    name: str | None
    class_name: str | None
    roi_type: str
    locked: bool
    outline: str | None


class PlannedRegion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A region: its geometry in level-0 px, as WKB in hexadecimal digits."""

    geometry: str
    annotation: PlannedAnnotation | None

    @classmethod
    def of(cls, region: Region) -> PlannedRegion:
        """Describe a region of an image's plan."""
        geometry = shapely.to_wkb(region.geometry, hex=True)
        annotation = region.annotation
        if annotation is None:
            return cls(geometry=geometry, annotation=None)
        outline = shapely.to_wkb(annotation.geometry, hex=True)
        return cls(
            geometry=geometry,
            annotation=PlannedAnnotation(
                handle=annotation.handle,
                id=annotation.id,
                name=annotation.name,
                class_name=annotation.class_name,
                roi_type=annotation.roi_type,
                locked=annotation.locked,
                outline=None if outline == geometry else outline,
            ),
        )

    def region(self) -> Region:
        """Return the region with what is known of its annotation."""
        geometry = shapely.from_wkb(self.geometry)
        known = self.annotation
        if known is None:
            return Region(None, geometry)
        annotation = Annotation(
            handle=known.handle,
            id=known.id,
            name=known.name,
            class_name=known.class_name,
            roi_type=known.roi_type,
            geometry=geometry if known.outline is None else shapely.from_wkb(known.outline),
            locked=known.locked,
        )
        return Region(annotation, geometry)
