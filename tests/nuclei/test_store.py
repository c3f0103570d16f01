from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import shapely

from qpnuclei.errors import SaveError
from qpnuclei.nuclei.store import Shards, temporary_shards
from qpnuclei.nuclei.table import NucleiTable, concatenate


def random_table(rng: np.random.Generator, n: int) -> NucleiTable:
    """Return polygons of three to six corners, some with a hole, and columns with gaps."""
    polygons = []
    for _ in range(n):
        x, y = rng.uniform(0, 1e5, 2)
        outline = shapely.Point(x, y).buffer(rng.uniform(5, 9), quad_segs=rng.integers(1, 3))
        hole = shapely.box(x - 1, y - 1, x + 1, y + 1) if rng.random() < 0.3 else shapely.Point()
        polygons.append(shapely.difference(outline, hole))
    values = rng.normal(size=(2, n)).astype(np.float32)
    values[0, rng.random(n) < 0.2] = np.nan
    return NucleiTable.from_polygons(polygons, {"Area µm^2": values[0], "Eosin: Mean": values[1]})


def assert_same(one: NucleiTable, other: NucleiTable) -> None:
    np.testing.assert_array_equal(one.vertices, other.vertices)
    np.testing.assert_array_equal(one.ring_offsets, other.ring_offsets)
    np.testing.assert_array_equal(one.polygon_offsets, other.polygon_offsets)
    assert list(one.measurements) == list(other.measurements)
    for name, column in one.measurements.items():
        np.testing.assert_array_equal(column, other.measurements[name])
        assert column.dtype == other.measurements[name].dtype == np.float32


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    with (tmp_path / "file").open("w+b", buffering=0) as opened:
        yield opened


def size_of(file: BinaryIO) -> int:
    return Path(file.name).stat().st_size


def test_what_comes_back_is_what_was_appended_bit_for_bit(file: BinaryIO, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = [random_table(rng, n) for n in (3, 0, 4, 1, 12, 0, 2)]
    shards = Shards(file, tmp_path, size=5)
    sizes = []
    for table in tables:
        shards.append(table)
        sizes.append(size_of(file))
    # 3 + 0 + 4 are enough to be written, 1 + 12 are, too; 0 + 2 stay in memory.
    assert [len(shard) for shard in shards] == [7, 13, 2]
    assert 0 == sizes[0] == sizes[1] < sizes[2] == sizes[3] < sizes[4] == sizes[5] == sizes[6]
    assert_same(concatenate(list(shards)), concatenate(tables))
    assert_same(shards[-3], concatenate(tables[:3]))
    assert [len(shard) for shard in shards[1:]] == [13, 2]
    with pytest.raises(IndexError):
        shards[3]


def test_a_table_can_be_replaced_wherever_it_is(file: BinaryIO, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shards = Shards(file, tmp_path, size=5)
    for n in (6, 8, 2):
        shards.append(random_table(rng, n))
    before, others = size_of(file), [*shards]
    for index in (0, 1, 2):
        fewer = others[index].take([1])
        shards[index] = fewer
        assert_same(shards[index], fewer)
    assert size_of(file) == before  # in the places of the others
    shards[0] = shards[0].take([])
    assert [len(shard) for shard in shards] == [0, 1, 1]
    assert list(shards[0].measurements) == ["Area µm^2", "Eosin: Mean"]


def test_a_larger_table_gets_another_place(file: BinaryIO, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shards = Shards(file, tmp_path, size=5)
    tables = [random_table(rng, n) for n in (5, 6, 500, 7)]
    for table in tables[:2]:
        shards.append(table)
    for index, table in ((0, tables[2]), (1, tables[3]), (0, tables[0])):
        shards[index] = table
        assert_same(shards[index], table)
    assert_same(concatenate(list(shards)), concatenate([tables[0], tables[3]]))


def test_few_nuclei_take_no_room_on_disk_and_none_are_none(tmp_path: Path) -> None:
    with temporary_shards(tmp_path) as shards:
        assert len(shards) == 0
        shards.append(random_table(np.random.default_rng(2), 30))
        assert [len(shard) for shard in shards] == [30]


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open has a name there")
def test_nothing_could_be_left_behind(tmp_path: Path) -> None:
    with temporary_shards(tmp_path / "not" / "yet", size=1) as shards:
        shards.append(random_table(np.random.default_rng(3), 3))
        assert len(shards) == 1
        # So a process that is killed leaves nothing.
        assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_named(file: BinaryIO, tmp_path: Path) -> None:
    table = random_table(np.random.default_rng(4), 2)
    with Path(file.name).open("rb", buffering=0) as cannot_write:
        shards = Shards(cannot_write, tmp_path / "gone", size=2)
        with pytest.raises(SaveError, match=r"nuclei cannot be stored in .*gone") as caught:
            shards.append(table)
    assert "--run-dir" in caught.value.hint
    with Path(file.name).open("wb", buffering=0) as cannot_read:
        shards = Shards(cannot_read, tmp_path / "gone", size=2)
        shards.append(table)
        with pytest.raises(SaveError, match=r"nuclei cannot be stored in .*gone"):
            shards[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        shards = Shards(full, tmp_path, size=2)
        with pytest.raises(SaveError, match="No space left"):
            shards.append(random_table(np.random.default_rng(4), 2))


def test_a_disk_without_room_for_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    said = re.escape(f"nuclei cannot be stored in {tmp_path}: No space left")
    with pytest.raises(SaveError, match=said), temporary_shards(tmp_path):
        pass
