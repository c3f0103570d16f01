from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely

from qpnuclei.errors import SaveError
from qpnuclei.nuclei import NucleiTable, concatenate
from qpnuclei.shards import Shards, temporary_shards


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


def test_what_comes_back_is_what_was_appended_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = [random_table(rng, n) for n in (3, 0, 4, 1, 12, 0, 2)]
    shards = Shards(tmp_path, size=5)
    for table in tables:
        shards.append(table)
    # 3 + 0 + 4 are enough for a file, 1 + 12 for another; 0 + 2 stay in memory.
    assert [len(shard) for shard in shards] == [7, 13, 2]
    assert len(list(tmp_path.iterdir())) == 2
    assert_same(concatenate(list(shards)), concatenate(tables))
    assert_same(shards[-3], concatenate(tables[:3]))
    assert [len(shard) for shard in shards[1:]] == [13, 2]
    with pytest.raises(IndexError):
        shards[3]


def test_a_table_can_be_replaced_wherever_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shards = Shards(tmp_path, size=5)
    for n in (6, 2):
        shards.append(random_table(rng, n))
    for index in (0, 1):
        fewer = shards[index].take([1])
        shards[index] = fewer
        assert_same(shards[index], fewer)
    shards[0] = shards[0].take([])
    assert [len(shard) for shard in shards] == [0, 1]
    assert list(shards[0].measurements) == ["Area µm^2", "Eosin: Mean"]


def test_few_nuclei_touch_no_disk_and_none_are_none(tmp_path: Path) -> None:
    with temporary_shards(tmp_path) as shards:
        assert len(shards) == 0
        shards.append(random_table(np.random.default_rng(2), 30))
        (folder,) = tmp_path.iterdir()
        assert list(folder.iterdir()) == []
        assert [len(shard) for shard in shards] == [30]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [SaveError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_behind_after_an_error(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with temporary_shards(tmp_path, size=1) as shards:
            shards.append(random_table(np.random.default_rng(3), 3))
            assert len(list(tmp_path.rglob("*.parquet"))) == 1
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "gone", size=2)
    table = random_table(np.random.default_rng(4), 2)
    with pytest.raises(SaveError, match=r"nuclei cannot be kept in .*gone") as caught:
        shards.append(table)
    assert "--run-dir" in caught.value.hint
    (tmp_path / "gone").mkdir()
    shards.append(table)
    next((tmp_path / "gone").iterdir()).unlink()
    with pytest.raises(SaveError, match=r"nuclei cannot be kept in .*gone"):
        shards[0]
    with pytest.raises(SaveError, match="cannot be kept"), temporary_shards(tmp_path / "nowhere"):
        pass
