import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.errors import SlideError
from qpnuclei.qupath.uris import candidates, file_uri, find_image, parse_file_uri


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:/home/a/x.svs", PurePosixPath("/home/a/x.svs")),
        ("file:///home/a/x.svs", PurePosixPath("/home/a/x.svs")),
        ("FILE://localhost/home/x.svs", PurePosixPath("/home/x.svs")),
        ("file:/a/he%20small%2Bb.png", PurePosixPath("/a/he small+b.png")),
        # A plus sign is a plus sign: only forms write a blank as one.
        ("file:///a/Edu+_RFP+_(3).tif", PurePosixPath("/a/Edu+_RFP+_(3).tif")),
        ("file:/a/%C3%BC%E7%BB%84.svs", PurePosixPath("/a/ü组.svs")),
        ("file:/a/ü.svs", PurePosixPath("/a/ü.svs")),
        ("file:/C:/slides/x.svs", PureWindowsPath("C:/slides/x.svs")),
        ("file:///c:/slides/x.svs", PureWindowsPath("C:/slides/x.svs")),
        ("file:////server/share/x.svs", PureWindowsPath("//server/share/x.svs")),
        ("file://server/share/x.svs", PureWindowsPath("//server/share/x.svs")),
        ("file:/a/x.svs#0", PurePosixPath("/a/x.svs")),
    ],
)
def test_file_uris(uri, path):
    assert parse_file_uri(uri) == path


@pytest.mark.parametrize(
    "uri",
    ["https://host/x.svs", "omero:1", "/a/x.svs", "", "file:x.svs", "file:/a%00b", "file:/a%FF"],
)
def test_other_uris_are_refused(uri):
    with pytest.raises(SlideError) as error:
        parse_file_uri(uri)
    assert repr(uri) in str(error.value)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/\\"), min_size=1))
def test_written_uris_are_read_back(name):
    path = Path("/slides") / name
    if path.name == name and name != "..":
        assert parse_file_uri(file_uri(path)) == PurePosixPath(path)


def test_written_as_qupath_writes_it():
    # From the samples: java.io.File.toURI.
    assert file_uri(Path("/a/he small.png")) == "file:/a/he%20small.png"


def places(uri, project_uri, image_root=None):
    root = None if image_root is None else Path(image_root)
    return [str(p) for p in candidates(uri, project_uri, Path("/new/proj"), root)]


@pytest.mark.parametrize(
    ("uri", "project_uri", "moved"),
    [
        ("file:/old/proj/im/x.svs", "file:/old/proj/project.qpproj", "/new/proj/im/x.svs"),
        ("file:///old/im/x.svs", "file:/old/proj/project.qpproj", "/new/im/x.svs"),
        ("file:/elsewhere/x.svs", "file:/old/proj/project.qpproj", "/elsewhere/x.svs"),
        ("file:/C:/lab/im/x.svs", "file:/c:/Lab/proj/project.qpproj", "/new/im/x.svs"),
        ("file:////srv/s/im/x.svs", "file:////SRV/s/proj/p.qpproj", "/new/im/x.svs"),
    ],
)
def test_a_moved_project_finds_its_images_where_they_were_relative_to_it(uri, project_uri, moved):
    assert places(uri, project_uri)[-1] == moved


@pytest.mark.parametrize(
    ("uri", "project_uri"),
    [
        ("file:/D:/im/x.svs", "file:/C:/proj/p.qpproj"),
        ("file:/C:/im/x.svs", "file:/proj/p.qpproj"),
        ("file:/C:/im/x.svs", "https://host/p.qpproj"),
        ("file:/C:/im/x.svs", None),
    ],
)
def test_no_relative_path_between_drives_or_machines(uri, project_uri):
    assert places(uri, project_uri) == []


def test_image_root_by_longest_suffix_first():
    found = places("file:/C:/lab/im/x.svs", None, "/slides")
    assert found == ["/slides/lab/im/x.svs", "/slides/im/x.svs", "/slides/x.svs"]


def test_image_root_is_never_left():
    for place in places("file:/C:/a/../../../../x.svs", None, "/slides"):
        assert ".." not in Path(place).parts


def test_first_that_exists(tmp_path):
    project, images = tmp_path / "proj", tmp_path / "images"
    project.mkdir()
    images.mkdir()
    (images / "x.svs").touch()
    uri, old = "file:/gone/images/x.svs", "file:/gone/proj/project.qpproj"
    assert find_image(uri, old, project) == images / "x.svs"
    assert find_image(uri, None, project) is None
    assert find_image(uri, None, project, images) == images / "x.svs"
    assert find_image("https://host/x.svs", None, project, images) is None


@pytest.mark.parametrize(("stored", "there"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_composed_and_decomposed_letters_are_the_same_file(tmp_path, stored, there):
    def place(form, *parts):
        return tmp_path.joinpath(*(unicodedata.normalize(form, part) for part in parts))

    slide = place(there, "Übung", "Bilder", "Größe é.svs")
    slide.parent.mkdir(parents=True)
    slide.touch()
    project = place(there, "Übung", "Projekt")
    # At its stored path.
    uri = file_uri(place(stored, "Übung", "Bilder", "Größe é.svs"))
    assert unicodedata.is_normalized(stored, uri)
    assert find_image(uri, None, project) == slide
    # At its path relative to the project, also if QuPath stored only one of them decomposed.
    for form in ("NFC", "NFD"):
        old = Path(unicodedata.normalize(form, "/alt/Übung/Projekt/project.qpproj"))
        image = Path(unicodedata.normalize(stored, "/alt/Übung/Bilder/Größe é.svs"))
        assert find_image(file_uri(image), file_uri(old), project) == slide
    # Below another folder.
    image = Path(unicodedata.normalize(stored, "/alt/Größe é.svs"))
    assert find_image(file_uri(image), None, project, slide.parent) == slide
    assert find_image(file_uri(image), None, project, project) is None


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_each_folder_and_file_may_have_another_form(tmp_path, stored):
    letters = unicodedata.normalize("NFC", "Größe"), unicodedata.normalize("NFD", "é.svs")
    slide = tmp_path.joinpath("a", *letters)
    slide.parent.mkdir(parents=True)
    slide.touch()
    # A folder of the same name without the file.
    (tmp_path / "a" / unicodedata.normalize("NFD", "Größe")).mkdir()
    parts = unicodedata.normalize(stored, "a/Größe/é.svs")
    assert find_image(file_uri(tmp_path / parts), None, tmp_path) == slide
    old = "file:/alt/p/project.qpproj"
    assert find_image(f"file:/alt/{parts}", old, tmp_path / "p") == slide
    assert find_image(f"file:/alt/{parts}", None, tmp_path / "p", tmp_path) == slide
    slide.unlink()
    assert find_image(f"file:/alt/{parts}", old, tmp_path / "p", tmp_path) is None


def test_a_file_with_the_stored_letters_comes_first(tmp_path):
    names = [unicodedata.normalize(form, "ü.svs") for form in ("NFC", "NFD")]
    for name in names:
        (tmp_path / name).touch()
    for name in names:
        for uri, root in ((file_uri(tmp_path / name), None), (f"file:/alt/{name}", tmp_path)):
            assert find_image(uri, None, tmp_path, root) == tmp_path / name
