from __future__ import annotations

import shapely

from qpnuclei.qupath.counts import count_in_regions, count_objects
from qpnuclei.qupath.regions import Region
from tests.qupath.counted import OTHER, OURS, RECTANGLE, annotation, detections, image


def test_nuclei_that_two_programs_found_are_said_to_be_counted_twice():
    # Discs of radius 1: the second lies on the first, the third beside it, the fourth elsewhere.
    points = [(12, 12), (12.4, 12), (14.5, 12), (40, 40), (40.2, 40), (60, 60), (60, 60)]
    ids = [OURS, OTHER, OTHER, OURS, OTHER, OTHER, OURS]
    planes = [(0, 0)] * 5 + [(0, 0), (1, 0)]  # the last two lie in two planes
    found = detections(points, ids=ids, planes=planes)
    two = [annotation(RECTANGLE), annotation(shapely.box(30, 30, 70, 70), handle=1)]
    counted = image(two, found)
    said = "counted twice: nuclei of other programs on nuclei of qpnuclei ({})"
    rows = count_objects(counted)
    assert [(row["nuclei"], row["check"]) for row in rows] == [
        (3, said.format(1)),
        (3, said.format(1)),
    ]
    assert [row["check"] for row in count_objects(counted, "image")] == [said.format(2)]
    assert [count[3] for count in count_in_regions(counted, [Region.of(a) for a in two])] == [
        said.format(1)
    ] * 2
    # Who asks for a class of one program counts nothing twice.
    found = detections(
        points, ["ours" if i == OURS else "Nucleus" for i in ids], ids, planes=planes
    )
    rows = count_objects(image(two, found), nucleus_classes=["Nucleus"])
    assert [(row["nuclei"], row["check"]) for row in rows] == [(2, None), (2, None)]
