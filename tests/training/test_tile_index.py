from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qpnuclei.errors import UsageError
from qpnuclei.training.sources import Source, find_sources
from qpnuclei.training.tile_index import (
    TileIndex,
    _starts,
    build_tile_index,
    cached_tile_index,
    sources_digest,
)
from tests.training.conftest import SCALES


def test_tiles_cover_the_image_at_each_scale(index: TileIndex) -> None:
    # 400 px at 0.25 µm/px: 3 tiles of 160 each way, from 0, 120, 240; at 0.5 200 px: 2, from 0, 40.
    first = index.source == 0
    fine = first & (index.scale == 0)
    assert sorted({*zip(index.x[fine], index.y[fine], strict=True)}) == [
        (x, y) for x in (0, 120, 240) for y in (0, 120, 240)
    ]
    coarse = first & (index.scale == 1)
    assert sorted(set(index.x[coarse].tolist())) == [0, 40]
    assert len(index) == 2 * (9 + 4)
    assert (index.tissue == 1).all()


def test_glass_is_left_out(tmp_path: Path) -> None:
    rgb = np.full((300, 600, 3), 250, np.uint8)
    rgb[:, :300] = (200, 120, 170)
    Image.fromarray(rgb).save(tmp_path / "half.png")
    found = build_tile_index(find_sources([tmp_path], mpp=[0.5]), (0.5,), 100, 0.7)
    assert sorted(set(found.x.tolist())) == [0, 100, 200]
    assert len(found) == 9


def test_only_the_roi_is_used_and_its_holes_are_not(sources: list[Source]) -> None:
    roi = shapely.box(0, 0, 400, 200) - shapely.box(0, 0, 200, 200)
    source = dataclasses.replace(sources[0], roi=roi)
    found = build_tile_index([source], (0.25,), 100, 0.7)
    assert sorted(zip(found.x.tolist(), found.y.tolist(), strict=True)) == [
        (200, 0), (200, 100), (300, 0), (300, 100)
    ]  # fmt: skip


def test_no_tiles_are_made_finer_than_the_source(sources: list[Source]) -> None:
    coarse = dataclasses.replace(sources[0], mpp=(0.5, 0.5))
    with pytest.raises(UsageError, match=r"no source has a tile of 100 px at 0\.25 µm/px"):
        build_tile_index([coarse], SCALES, 100, 0.7)
    both = build_tile_index([coarse, sources[1]], SCALES, 100, 0.7)
    assert set(both.source[both.scale == 0].tolist()) == {1}
    assert set(both.source[both.scale == 1].tolist()) == {0, 1}


def test_the_hint_names_scales_that_have_tiles(sources: list[Source]) -> None:
    for scales, left in (((0.25, 0.5, 16.0), "[0.25,0.5]"), ((0.25, 16.0), None)):
        with pytest.raises(UsageError, match="at 16") as caught:
            build_tile_index(sources[:1], scales, 100, 0.7)
        hint = caught.value.hint or ""
        assert hint.startswith("give larger or finer images")
        assert (f"--set scales={left}" in hint) if left else ("--set" not in hint)


def test_images_without_tiles_are_named(
    sources: list[Source], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tissue = np.asarray(Image.open(sources[0].path))
    for name, rgb in {
        "blank": np.full((400, 400, 3), 250, np.uint8),
        "little": tissue[:90, :90],
        **{f"small-{n}": tissue[:150, :150] for n in range(5)},
    }.items():
        Image.fromarray(rgb).save(tmp_path / f"{name}.png")
    others = find_sources([tmp_path], mpp=[0.25])
    coarse = dataclasses.replace(sources[1], mpp=(0.5, 0.5))
    far_too_coarse = dataclasses.replace(sources[1], name="far.png", mpp=(1.0, 1.0))
    index = build_tile_index([sources[0], coarse, far_too_coarse, *others], SCALES, 100, 0.7)
    assert len(set(index.source.tolist())) == 7
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [m for m in warnings if "too coarse" not in m] == [
        "blank.png is left out: no part of 100 px at 0.25 or 0.5 µm/px is 70 % tissue",
        "little.png is left out: no part of 100 px at 0.25 or 0.5 µm/px is 70 % tissue",
        "no tiles at 0.5 µm/px, where no part of 100 px is 70 % tissue: "
        "small-0.png, small-1.png, small-2.png and 2 more",
    ]
    assert [m.partition(":")[0] for m in warnings if "too coarse" in m] == [
        "b.png", "far.png", "far.png"
    ]  # fmt: skip


def test_the_index_is_built_once(tmp_path: Path, sources: list[Source]) -> None:
    calls: list[int] = []
    first = cached_tile_index(tmp_path, sources, SCALES, 160, 0.7, calls.append)
    assert calls == [0, 1, 2]
    again = cached_tile_index(tmp_path, sources, SCALES, 160, 0.7, calls.append)
    assert calls == [0, 1, 2]
    for field in dataclasses.fields(TileIndex):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(first, field.name))
    cached_tile_index(tmp_path, sources, SCALES, 160, 0.6)
    assert len(list(tmp_path.glob("tiles-*.parquet"))) == 2


def test_the_index_names_slide_resolution_and_tissue(tmp_path: Path, sources: list[Source]) -> None:
    cached_tile_index(tmp_path, sources, SCALES, 160, 0.7)
    (path,) = tmp_path.glob("tiles-*.parquet")
    row = pq.read_table(path).slice(9, 1).to_pylist()[0]
    assert (row["slide"], row["mpp"], row["x"], row["y"], row["tissue"]) == ("a.png", 0.5, 0, 0, 1)


def test_the_digest_sees_what_changes_the_index(sources: list[Source]) -> None:
    digest = sources_digest(sources, SCALES, 160, 0.7)
    assert digest == sources_digest(list(sources), SCALES, 160, 0.7)
    changes: list[dict[str, object]] = [
        {"roi": shapely.box(0, 0, 9, 9)},
        {"mpp": (0.3, 0.3)},
        {"crop_to_bounds": True},
        {"series": 1},
        {"apply_icc": True},
    ]
    others = [
        *(
            sources_digest([dataclasses.replace(s, **change) for s in sources], SCALES, 160, 0.7)
            for change in changes
        ),
        sources_digest(sources[::-1], SCALES, 160, 0.7),
        sources_digest(sources, (0.25, 1.0), 160, 0.7),
        sources_digest(sources, SCALES, 161, 0.7),
        sources_digest(sources, SCALES, 160, 0.8),
    ]
    assert len({digest, *others}) == 10


def test_the_digest_of_usual_images_is_that_of_former_versions(tmp_path: Path) -> None:
    """So that trainings can be resumed."""
    (tmp_path / "a.png").write_bytes(b"1234")
    os.utime(tmp_path / "a.png", ns=(0, 10**18))
    (tmp_path / "link.png").symlink_to("a.png")
    source = Source("a.png", tmp_path / "link.png", (0.25, 0.25), 512, 512)
    content = [
        [[str(tmp_path.resolve() / "a.png"), 4, 10**18, [0.25, 0.25], False, None, None]],
        [0.25, 0.5],
        160,
        0.7,
    ]
    expected = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    assert sources_digest([source], (0.25, 0.5), 160, 0.7) == expected


@given(st.integers(0, 3000), st.integers(1, 300))
def test_windows_cover_the_extent_and_never_leave_it(extent: int, size: int) -> None:
    starts = _starts(extent, size)
    if extent < size:
        assert len(starts) == 0
        return
    assert starts[0] == 0
    assert starts[-1] == extent - size
    assert np.all(np.diff(starts) <= size)
    assert len(starts) == -(-extent // size)  # not one more than it takes
