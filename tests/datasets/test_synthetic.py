"""The synthetic slide: readable everywhere, and true to its truth."""

import numpy as np
import pytest
import shapely
import tifffile
from scipy import ndimage

from qpnuclei.datasets.synthetic.layout import COARSE, _distance, demo_annotations
from qpnuclei.datasets.synthetic.slide import SYNTHETIC_MPP, make_slide
from qpnuclei.errors import SaveError, UsageError
from qpnuclei.slides.slide import open_slide
from qpnuclei.slides.stains import separate
from qpnuclei.slides.tissue import find_tissue

SIZE = (2400, 1950)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return make_slide(tmp_path_factory.mktemp("demo") / "synthetic.tif", SIZE, seed=3)


def test_file_is_a_tiled_jpeg_pyramid(synthetic):
    with tifffile.TiffFile(synthetic.path) as tiff:
        pages = tiff.pages
        assert [page.shape[:2] for page in pages] == [(1950, 2400), (487, 600), (121, 150)]
        assert all(page.is_tiled for page in pages)
        assert all(page.compression == tifffile.COMPRESSION.JPEG for page in pages)
        assert "Synthetic" in pages[0].description


def test_our_reader_and_openslide_agree(synthetic):
    openslide = pytest.importorskip("openslide")
    with open_slide(synthetic.path) as slide, openslide.OpenSlide(synthetic.path) as other:
        assert (slide.width, slide.height) == other.dimensions == SIZE
        assert slide.mpp == pytest.approx((SYNTHETIC_MPP, SYNTHETIC_MPP))
        assert float(other.properties["openslide.mpp-x"]) == pytest.approx(SYNTHETIC_MPP)
        assert other.level_dimensions == ((2400, 1950), (600, 487), (150, 121))
        assert [level.downsample for level in slide.levels] == [1, 4, 16]
        theirs = np.asarray(other.read_region((700, 600), 0, (400, 300)))[..., :3].astype(int)
        ours = slide.read(700, 600, 400, 300).astype(int)
    assert np.abs(ours - theirs).max() <= 4  # two JPEG decoders


def test_nuclei_lie_inside_and_are_of_every_kind(synthetic):
    polygons = synthetic.nuclei.polygons()
    assert len(polygons) == len(synthetic.kinds) > 300
    assert shapely.is_valid(polygons).all()
    assert shapely.contains(shapely.box(0, 0, *SIZE), polygons).all()
    assert set(synthetic.kinds) == {"tumour", "spindle", "lymphocyte"}
    area_um2 = shapely.area(polygons) * SYNTHETIC_MPP**2
    assert 40 < np.median(area_um2[synthetic.kinds == "tumour"]) < 150
    assert 20 < np.median(area_um2[synthetic.kinds == "lymphocyte"]) < 45


def test_some_nuclei_touch_and_some_overlap_a_little(synthetic):
    polygons = synthetic.nuclei.polygons()
    i, j = shapely.STRtree(polygons).query(polygons, "intersects")
    i, j = i[i < j], j[i < j]
    share = shapely.area(shapely.intersection(polygons[i], polygons[j])) / np.minimum(
        shapely.area(polygons[i]), shapely.area(polygons[j])
    )
    assert (share > 0.01).sum() > 10
    assert share.max() < 0.3  # the largest allowed is a quarter, of simplified outlines


def test_nuclei_are_where_the_haematoxylin_is(synthetic):
    with open_slide(synthetic.path) as slide:
        haematoxylin = separate(slide.read(0, 0, *SIZE))[..., 0]
    for kind, least in (("tumour", 0.25), ("spindle", 0.3), ("lymphocyte", 0.4)):
        nuclei = synthetic.nuclei.take(synthetic.kinds == kind)
        x, y = nuclei.centroids().astype(int).T
        inside = haematoxylin[y, x]
        assert np.median(inside) > least
        # Twelve µm to the right there is mostly something else.
        beside = haematoxylin[y, np.minimum(x + 48, SIZE[0] - 1)]
        assert np.median(inside) > 1.5 * np.median(beside)


def test_strips_leave_no_seams(synthetic):
    """Across the border of two strips, rows differ no more than within a strip."""
    with open_slide(synthetic.path) as slide:
        pixels = slide.read(0, 0, *SIZE).astype(int)
    steps = np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2))
    for border in (512, 1024, 1536):
        near = np.concatenate([steps[border - 20 : border - 2], steps[border + 1 : border + 20]])
        assert steps[border - 1] < near.max() * 1.2


def test_equal_seeds_give_equal_slides(tmp_path):
    a = make_slide(tmp_path / "a-synthetic.tif", (600, 520), seed=1)
    b = make_slide(tmp_path / "b-synthetic.tif", (600, 520), seed=1)
    c = make_slide(tmp_path / "c-synthetic.tif", (600, 520), seed=2)
    assert a.path.read_bytes() == b.path.read_bytes() != c.path.read_bytes()
    np.testing.assert_array_equal(a.nuclei.vertices, b.nuclei.vertices)


def test_distances_are_exact_wherever_in_memory_they_lie():
    """OpenCV's own are rounded in one of two ways, by the address of the result."""
    mask = (ndimage.gaussian_filter(np.random.default_rng(0).random((82, 69)), 5) > 0.5).astype(
        "u1"
    )
    inside, outside = (ndimage.distance_transform_edt(part) for part in (mask, 1 - mask))
    expected = ((inside - outside) * COARSE).astype(np.float32)
    np.testing.assert_array_equal(_distance(mask), expected)


def test_tissue_is_found_without_pen_and_glass(synthetic):
    with open_slide(synthetic.path) as slide:
        tissue = find_tissue(slide, (SYNTHETIC_MPP, SYNTHETIC_MPP))
    centroids = synthetic.nuclei.centroids()
    inside = shapely.contains_xy(tissue, centroids[:, 0], centroids[:, 1])
    assert inside.mean() > 0.95
    width, height = SIZE
    pen = shapely.Point(0.735 * width, 0.10 * height)
    glass = shapely.Point(0.9 * width, 0.1 * height)
    assert not tissue.intersects(pen)
    assert not tissue.intersects(glass)


@pytest.mark.parametrize("size", [(6400, 5200), (2400, 1950)])
def test_annotations_fit_the_slide(size):
    annotations = demo_annotations(size)
    assert [a.class_name for a in annotations] == ["Tumor", "Tumor", "Stroma", None]
    geometries = [a.geometry for a in annotations]
    assert all(shapely.is_valid(g) for g in geometries)
    assert [len(g.interiors) for g in geometries] == [1, 0, 0, 0]
    assert shapely.contains(shapely.box(0, 0, *size), shapely.union_all(geometries))
    share = sum(g.area for g in geometries) / (size[0] * size[1])
    assert 0.35 < share < 0.45


def test_annotations_fit_the_tissue(synthetic):
    """Tumour nuclei lie in the Tumor annotations and hardly any in the Stroma."""
    centroids = synthetic.nuclei.centroids()
    tumor_1, tumor_2, stroma, _ = demo_annotations(SIZE)
    for annotation, low, high in ((tumor_1, 0.5, 1), (tumor_2, 0.5, 1), (stroma, 0, 0.05)):
        inside = shapely.contains_xy(annotation.geometry, centroids[:, 0], centroids[:, 1])
        assert inside.sum() > 30
        assert low <= (synthetic.kinds[inside] == "tumour").mean() <= high


def test_a_name_that_hides_that_it_is_synthetic_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not say that the slide is synthetic"):
        make_slide(tmp_path / "patient-1.tif")
    with pytest.raises(UsageError, match="too small"):
        make_slide(tmp_path / "synthetic.tif", (100, 5000))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(SaveError, match=r"cannot write .*synthetic\.tif"):
        make_slide(tmp_path / "absent" / "synthetic.tif", (512, 512))
