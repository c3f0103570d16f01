"""The Groovy scripts for QuPath: their headers, that they compile, and what they do in QuPath.

A Groovy 4 compiler comes with QuPath, and in the npm package ``npm-groovy-lint``: set
QPNUCLEI_GROOVY_HOME to the folder it was unpacked to. What needs JTS also takes a jts-core jar from
this folder. What needs QuPath's classes takes those of the installation in PAQUO_QUPATH_DIR.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import shapely
import typer.main

from qpnuclei.cli.app import app
from qpnuclei.nuclei.exports.spreadsheet import no_formula
from qpnuclei.nuclei.ids import ID_PREFIX, is_ours
from qpnuclei.qupath.analysed import PROPERTY, Record, UsedMpp
from qpnuclei.qupath.analysed_area import AnalysedArea
from qpnuclei.qupath.count_table import write_counts
from qpnuclei.qupath.filters import FILTERS, with_filter
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.image_names import match_images
from qpnuclei.qupath.model import Detections, ImageEntry, Project
from qpnuclei.qupath.names import file_stem
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.paquo.installation import find_qupath
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.qupath.scripts import first_settings
from qpnuclei.slides.stains import Stains, stain_rows
from tests.cli.conftest import SAMPLES
from tests.ids import nucleus_id
from tests.paths import ROOT
from tests.qupath.counting_cases import CASES, id_of, record_of, rings

FOLDER = ROOT / "qupath_scripts"
SCRIPTS = sorted(FOLDER.glob("*.groovy"))
RUNNER = Path(__file__).with_name("run_in_qupath.groovy")
#: Names of classes that come with QuPath.
_QUPATH_IMPORT = re.compile(
    r"^import (?:static )?"
    r"((?:qupath|javafx|org\.apache\.commons|org\.locationtech)\.[\w.]+?)(?:\.\*)?$",
    re.MULTILINE,
)
_JTS = "org.locationtech.jts."
#: Scripts that work in an image that is shown.
SHOWN = {
    *("accept_nuclei.groovy", "add_menu.groovy", "colour_by_measurement.groovy"),
    *("compare_settings.groovy", "preview_view.groovy", "reject_nuclei.groovy"),
    *("remove_preview.groovy", "sensitivity.groovy", "settings.groovy"),
}


@dataclass(frozen=True)
class Groovy:
    """A Groovy compiler, and the jars of a whole QuPath, or of JTS alone, where there is one."""

    jars: tuple[Path, ...]
    has_qupath: bool
    has_jts: bool

    def java(self, main: str, *arguments: object, **variables: str) -> str:
        """Run a main class and return what it prints; fail if it fails."""
        encoding = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")
        path = os.pathsep.join(map(str, self.jars))
        done = subprocess.run(
            ["java", *encoding, "-cp", path, main, *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            env={**os.environ, **variables},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def lines(self, folder: Path, script: str, code: str, *arguments: object) -> list[str]:
        """Run code that is given a script, without QuPath, as args[0]; return what it prints."""
        source, caller = folder / script, folder / "caller.groovy"
        text = _QUPATH_IMPORT.sub(
            lambda found: found[0] if self.has_jts and _JTS in found[1] else "", text_of(script)
        )
        source.write_text(text, encoding="utf-8")
        caller.write_text(code, encoding="utf-8")
        return self.java("groovy.ui.GroovyMain", caller, source, *arguments).splitlines()


@pytest.fixture(scope="session")
def groovy() -> Groovy:
    if shutil.which("java") is None:
        pytest.skip("no Java on the PATH")
    installation = find_qupath()
    qupath = sorted(installation.path.rglob("*.jar")) if installation else []
    # QuPath's core alone does not run scripts: that is a library of its own.
    if not any(_holds(jar, "qupath/lib/scripting/QP.class") for jar in qupath):
        qupath = []
    home = os.environ.get("QPNUCLEI_GROOVY_HOME")
    jars = [*qupath, *(sorted(Path(home).rglob("*.jar")) if home else [])]
    compilers = [jar for jar in jars if re.fullmatch(r"groovy-[4-9][\d.]*\.jar", jar.name)]
    if not compilers:
        pytest.skip("no Groovy 4 found: set PAQUO_QUPATH_DIR or QPNUCLEI_GROOVY_HOME")
    jts = [jar for jar in jars if re.fullmatch(r"jts-core-[\d.]+\.jar", jar.name)]
    more = qupath or jts[:1]
    return Groovy((compilers[0], *more), bool(qupath), bool(jts))


@pytest.fixture
def jts(groovy: Groovy) -> Groovy:
    if not groovy.has_jts:
        pytest.skip("no JTS found: it comes with QuPath, or put jts-core into QPNUCLEI_GROOVY_HOME")
    return groovy


@pytest.fixture
def qupath(groovy: Groovy) -> Groovy:
    if not groovy.has_qupath:
        pytest.skip("no QuPath with scripting found: set PAQUO_QUPATH_DIR")
    return groovy


def _holds(jar: Path, name: str) -> bool:
    if not jar.name.startswith("qupath-"):
        return False
    with zipfile.ZipFile(jar) as archive:
        return name in archive.namelist()


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


# --- without Groovy ------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_header_says_what_it_does_and_how_to_run_it(script: Path) -> None:
    header, end, _ = text_of(script.name).partition("*/")
    assert end
    for part in ("What it does", "In QuPath (0.4 to 0.7)", "Headless"):
        assert part in header
    is_shown = script.name in SHOWN
    assert ("QuPath script -p " in header) == (f" {script.name}" in header) == (not is_shown)


def test_readme_lists_the_scripts() -> None:
    assert set(re.findall(r"\w+\.groovy", text_of("README.md"))) == {s.name for s in SCRIPTS}


def test_options_used_are_those_of_the_command() -> None:
    used = set(re.findall(r"--[a-z][a-z-]*", text_of("run_qpnuclei.groovy")))
    of_preview = set(re.findall(r"--[a-z][a-z-]*", text_of("preview_view.groovy")))
    command = cast(typer.main.TyperGroup, typer.main.get_command(app)).commands["run"]  # type: ignore[name-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert used - known == {"--save"}  # of QuPath's own command
    assert {"--image", "--roi-id", "--roi-all"} <= used
    assert {"--geojson", "--no-report", "--roi-all", "--exclude"} <= of_preview <= known


def test_what_is_loaded_after_a_run_has_its_record() -> None:
    script = text_of("run_qpnuclei.groovy")
    reload = script[script.index("void reload(") :]
    assert reload.index("takeProperties(") < reload.index("setChanged(false)")
    prefix = re.search(r'startsWith\("(.*)"\)', script[script.index("void takeProperties(") :])
    assert prefix
    assert PROPERTY.startswith(prefix[1])


def test_options_are_split_in_one_place() -> None:
    assert not [script.name for script in SCRIPTS if ".tokenize(" in text_of(script.name)]
    assert "words(settings().options)" in text_of("run_qpnuclei.groovy")
    assert "forPreview(qpnuclei.words(options))" in text_of("preview_view.groovy")


def test_the_menu_has_the_scripts() -> None:
    named = re.findall(r'"(\w+\.groovy)"', text_of("add_menu.groovy"))
    of_the_script_editor = {"add_menu.groovy", "export_counts.groovy", "import_detections.groovy"}
    assert set(named) == {script.name for script in SCRIPTS} - of_the_script_editor


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_that_scripts_use_are_there_and_have_the_methods(script: Path) -> None:
    text = text_of(script.name)
    used = set(re.findall(r"qpnuclei\.(\w+)\(", text))
    if used:
        assert '"run_qpnuclei.groovy"' in text
    defined = re.findall(r"^\w+ (\w+)\(.*\) \{$", text_of("run_qpnuclei.groovy"), re.MULTILINE)
    assert used <= set(defined)


def test_export_writes_the_columns_of_the_command() -> None:
    script = text_of("export_counts.groovy")
    rows = count_project(
        (project := open_project(SAMPLES / "0.5.1" / "project")), list(project.images)
    )
    columns = list(rows[0])
    fixed = [*columns[: columns.index("Num Detections") + 1], "image_id", "project"]
    places = [re.search(rf"[\[ \"]{re.escape(name)}\"?: ", script) for name in fixed]
    assert all(places), list(zip(fixed, places, strict=True))
    assert all(f"({summary})" in script for summary in ("mean", "median", "SD"))


def test_a_preview_is_not_counted_but_keeps_the_pixel_size_of_an_earlier_run() -> None:
    script = text_of("preview_view.groovy")
    assert f'getProperty("{PROPERTY}")' in script
    assert script.index("it.refreshID()") < script.index("hierarchy.addObjects(found)")


def test_export_knows_our_detections() -> None:
    assert f"0x{ID_PREFIX.hex()}L" in text_of("export_counts.groovy")


#: With doubts about areas, about the image by this run and by an earlier one, and an older doubt.
RECORD = Record(
    (
        AnalysedArea(
            None,
            shapely.MultiPolygon([shapely.box(0, 0, 9, 9)]),
            'pale; "check":",\\"nuclei\\":5',
            turn=1,
            nuclei=34,
        ),
        AnalysedArea(uuid.uuid4(), shapely.MultiPolygon(), "before the filter: pale", turn=1),
        AnalysedArea(uuid.uuid4(), shapely.MultiPolygon(), image_check="blöd", turn=1),
        AnalysedArea(uuid.uuid4(), shapely.MultiPolygon(), turn=2),
    ),
    UsedMpp((0.25, 0.25), '--mpp "check": "', None),
    "dense",
    "run",
)


def test_the_slider_marks_doubts_as_filter_does() -> None:
    script = text_of("sensitivity.groovy")
    rule = re.search(r"replaceAll\(/(.*)/, '\$1(.*)'\)", script)
    assert rule
    (text,) = RECORD.to_properties().values()
    forgotten = re.search(r"\?\.replaceAll\(/(.*)/, ''\)", script)
    assert forgotten
    marked = re.sub(rule[1], lambda found: found[1] + rule[2], text)
    marked = re.sub(forgotten[1], "", marked)
    (expected,) = RECORD.filtered().to_properties().values()
    assert marked == expected != text
    assert f'"{PROPERTY}"' in script


# --- with a Groovy compiler ----------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_compiles(groovy: Groovy, script: Path, tmp_path: Path) -> None:
    sources = [tmp_path / script.name]
    text = text_of(script.name)
    sources[0].write_text(text, encoding="utf-8")
    if not groovy.has_qupath:
        # Empty classes stand in: what is checked is the script's own text.
        for name in set(_QUPATH_IMPORT.findall(text)):
            package, _, own = name.rpartition(".")
            stub = tmp_path / "stubs" / Path(*package.split(".")) / f"{own}.groovy"
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text(f"package {package}\nclass {own} {{}}\n", encoding="utf-8")
            sources.append(stub)
    out = tmp_path / "classes"
    groovy.java("org.codehaus.groovy.tools.FileSystemCompiler", "-d", out, *sources)
    assert (out / script.with_suffix(".class").name).exists()


def test_settings_are_kept_and_read_by_all_scripts(groovy: Groovy, tmp_path: Path) -> None:
    written = tmp_path / "settings.conf"
    program = tmp_path / "bin" / "a program"
    written.write_bytes(first_settings(program))
    found = groovy.lines(
        tmp_path,
        "run_qpnuclei.groovy",
        'def variables = new Binding(["qupath.script.file": args[0]])\n'
        "def run = new GroovyShell(variables).parse(new File(args[0]))\n"
        "println run.settings()\n"
        'run.saveSettings([program: "C:\\\\µ\\\\qpnuclei.exe", options: "--mpp 0.25"])\n'
        "println run.settings()\n"
        "println run.programPath()\n",
    )
    assert found == [
        f"[program:{program}, options:]",
        "[program:C:\\µ\\qpnuclei.exe, options:--mpp 0.25]",
        "C:\\µ\\qpnuclei.exe",
    ]


def test_an_image_is_named_so_that_no_other_is_meant(groovy: Groovy, tmp_path: Path) -> None:
    names = ["he small.png", "*.svs", "a?[1].tif", "a1.tif", "x[*].tif"]
    *given, refused = groovy.lines(
        tmp_path,
        "run_qpnuclei.groovy",
        "def run = new GroovyShell().parse(new File(args[0]))\n"
        "def entry = { name -> [getImageName: { name }] as Named }\n"
        "interface Named { String getImageName() }\n"
        "interface Images { List getImageList() }\n"
        "def images = args[1..-1].collect(entry)\n"
        "images.each { println run.uniqueName([getImageList: { images }] as Images, it) }\n"
        "def twice = [getImageList: { [images[0], images[0]] }] as Images\n"
        "try { run.uniqueName(twice, images[0]) }\n"
        "catch (IllegalStateException e) { println e.message }\n",
        *names,
    )
    project = SimpleNamespace(
        path=tmp_path,
        images=[SimpleNamespace(id=str(i), name=name) for i, name in enumerate(names)],
    )
    assert given == names
    for name in names:
        (found,) = match_images(cast(Project, project), [name])
        assert found.name == name
    assert "several images called 'he small.png'" in refused


def test_what_is_in_view_ends_where_the_image_ends(groovy: Groovy, tmp_path: Path) -> None:
    # What QuPath would make of a rectangle is printed instead.
    found = groovy.lines(
        tmp_path,
        "run_qpnuclei.groovy",
        "import java.awt.Rectangle\n"
        "import java.awt.geom.AffineTransform\n"
        "def variables = new Binding([\n"
        '    ROIs: [createRectangleROI: { Object... box -> box.join(" ") }] as Shapes,\n'
        '    ImagePlane: [getDefaultPlane: { "plane" }] as Planes])\n'
        "interface Shapes { Object createRectangleROI(Object... box) }\n"
        "interface Planes { Object getDefaultPlane() }\n"
        "interface Viewer { Object getDisplayedRegionShape() }\n"
        "interface Server { int getWidth(); int getHeight() }\n"
        "def run = new GroovyShell(variables).parse(new File(args[0]))\n"
        "def image = [getWidth: { 100 }, getHeight: { 50 }] as Server\n"
        "def viewer = { shape -> [getDisplayedRegionShape: { shape }] as Viewer }\n"
        "def turned = AffineTransform.getQuadrantRotateInstance(1, 20, 20)\n"
        "def shapes = [new Rectangle(10, 20, 30, 10), new Rectangle(-5, 40, 500, 400),\n"
        "              turned.createTransformedShape(new Rectangle(20, 10, 20, 5))]\n"
        "shapes.each { println run.viewRoi(viewer(it), image) }\n"
        "try { run.viewRoi(viewer(new Rectangle(200, 0, 10, 10)), image) }\n"
        "catch (IllegalStateException e) { println e.message }\n",
    )
    assert found == [
        "10.0 20.0 30.0 10.0 plane",
        "0.0 40.0 100.0 10.0 plane",
        "25.0 20.0 5.0 20.0 plane",
        "nothing of the image is in view",
    ]


def test_only_properties_of_qpnuclei_are_taken_over(groovy: Groovy, tmp_path: Path) -> None:
    found = groovy.lines(
        tmp_path,
        "run_qpnuclei.groovy",
        "def run = new GroovyShell().parse(new File(args[0]))\n"
        "class Image {\n"
        "    Map properties\n"
        "    Map getProperties() { properties.asImmutable() }\n"
        "    def getProperty(String name) { properties[name] }\n"
        "    void setProperty(String name, Object value) { properties[name] = value }\n"
        "    void removeProperty(String name) { properties.remove(name) }\n"
        "}\n"
        'def saved = new Image([properties: ["qpnuclei analysed": "new", "other": "saved"]])\n'
        'def image = new Image([properties: ["qpnuclei analysed": "old", "other": "kept"]])\n'
        "run.takeProperties(saved, image)\n"
        "println image.getProperties()\n"
        "run.takeProperties(new Image([properties: [:]]), image)\n"
        "println image.getProperties()\n",
    )
    assert found == ["[qpnuclei analysed:new, other:kept]", "[other:kept]"]


def test_the_slider_marks_doubts_in_groovy(groovy: Groovy, tmp_path: Path) -> None:
    method = re.search(r"^String beforeFilter.*?^}$", text_of("sensitivity.groovy"), re.M | re.S)
    assert method
    (text,) = RECORD.to_properties().values()
    record, caller = tmp_path / "record.json", tmp_path / "caller.groovy"
    record.write_text(text, encoding="utf-8")
    caller.write_text(
        f"{method[0]}\n"
        'def once = beforeFilter(new File(args[0]).getText("UTF-8"))\n'
        "println once\n"
        "println beforeFilter(once) == once\n"
        "println beforeFilter(null)\n",
        encoding="utf-8",
    )
    (expected,) = RECORD.filtered().to_properties().values()
    marked = groovy.java("groovy.ui.GroovyMain", caller, record).splitlines()
    assert marked == [expected, "true", "null"]


def test_the_slider_stores_its_filter_as_filter_does(groovy: Groovy, tmp_path: Path) -> None:
    text = text_of("sensitivity.groovy")
    assert f'"{FILTERS}"' in text
    method = re.search(r"^String withFilter.*?^}$", text, re.M | re.S)
    assert method
    caller = tmp_path / "caller.groovy"
    caller.write_text(
        f"{method[0]}\n"
        'def record = new File(args[0]).getText("UTF-8")\n'
        "def once = withFilter(null, record, 0.8)\n"
        "println once\n"
        "println withFilter(once, record, 0.75)\n",
        encoding="utf-8",
    )
    for record in (RECORD, replace(RECORD, earlier_runs=("a", "b")), replace(RECORD, run="")):
        (content,) = record.to_properties().values()
        (tmp_path / "record.json").write_text(content, encoding="utf-8")
        stored = groovy.java("groovy.ui.GroovyMain", caller, tmp_path / "record.json").splitlines()
        first = with_filter({}, record, "a.svs", 0.8, ())
        both = with_filter(first, record, "a.svs", 0.75, ())
        assert list(map(json.loads, stored)) == [json.loads(p[FILTERS]) for p in (first, both)]


def test_options_with_spaces_are_in_quotes(groovy: Groovy, tmp_path: Path) -> None:
    given = {
        "": [],
        " --mpp  0.25\t--tissue ": ["--mpp", "0.25", "--tissue"],
        """--exclude "Old pen" --roi='It is "x"'""": ["--exclude", "Old pen", '--roi=It is "x"'],
        r"--model C:\new\m.onnx": ["--model", r"C:\new\m.onnx"],
        r"""'C:\my models\m.onnx' a"b c"'d e'f""": [r"C:\my models\m.onnx", "ab cd ef"],
        """--exclude "" '' x""": ["--exclude", "", "", "x"],
    }
    refused = ['--exclude "Old pen', "it's"]
    found = groovy.lines(
        tmp_path,
        "run_qpnuclei.groovy",
        "def run = new GroovyShell().parse(new File(args[0]))\n"
        "new File(args[1]).readLines('UTF-8').each {\n"
        '    try { println run.words(it).collect { "<$it>" }.join(" ") }\n'
        "    catch (IllegalArgumentException e) { println e.message }\n"
        "}\n",
        listed(tmp_path, [*given, *refused]),
    )
    expected = [" ".join(f"<{word}>" for word in words) for words in given.values()]
    assert found[: len(given)] == expected
    assert found[len(given) :] == [f"a quote is not closed in the options: {r}" for r in refused]


def listed(folder: Path, lines: Iterable[str]) -> Path:
    """Write lines to a file: a command line cannot have all characters on every system."""
    path = folder / "lines.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


#: Options of `run` that refer to the project that is open, or write into folders of the user.
NOT_FOR_PREVIEW = {
    *("--exclude", "--on-existing", "--image", "--roi", "--roi-name", "--roi-id", "--roi-all"),
    *("--roi-derived", "--tissue", "--no-annotation", "--qc", "--dry-run"),
    *("--output", "-o", "--geojson", "--parquet", "--run-dir"),
}


def preview_options(groovy: Groovy, folder: Path, *options: str) -> str:
    (printed,) = groovy.lines(
        folder,
        "preview_view.groovy",
        "def script = new GroovyShell().parse(new File(args[0]))\n"
        "try { println script.forPreview(args.drop(1) as List) }\n"
        "catch (IllegalArgumentException e) { println e.message }\n",
        *options,
    )
    return printed


def test_a_preview_has_no_options_that_refer_to_the_open_project(
    groovy: Groovy, tmp_path: Path
) -> None:
    command = cast(typer.main.TyperGroup, typer.main.get_command(app)).commands["run"]  # type: ignore[name-defined]
    given, expected = [], []
    for parameter in command.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if not option.startswith("-") or option == "--mpp-table":
                continue
            is_flag = getattr(parameter, "is_flag", False)
            written = [option] if is_flag else [option, "--value"]
            joined = [] if is_flag else [f"{option}=value"]
            given += [*written, *joined]
            expected += [] if option in NOT_FOR_PREVIEW else [*written, *joined]
    assert set(given) >= NOT_FOR_PREVIEW
    assert {"--threshold", "--mpp", "--model"} <= set(expected)
    assert preview_options(groovy, tmp_path, *given) == f"[{', '.join(expected)}]"


def test_a_preview_keeps_what_stands_between_options_that_it_leaves_out(
    groovy: Groovy, tmp_path: Path
) -> None:
    options = ("--exclude", "--exclude", "--mpp", "0.25", "--exclude=Pen", "-oout", "--on-existing")
    found = preview_options(groovy, tmp_path, *options, "skip", "--threshold", "0.4")
    assert found == "[--mpp, 0.25, --threshold, 0.4]"


@pytest.mark.parametrize("given", [["--mpp-table", "sizes.csv"], ["--mpp-table=sizes.csv"]])
def test_a_preview_refuses_a_table_of_pixel_sizes(
    groovy: Groovy, tmp_path: Path, given: list[str]
) -> None:
    assert "give --mpp instead" in preview_options(groovy, tmp_path, "--tta", *given)


def test_only_one_script_knows_what_is_in_view() -> None:
    knowing = {s.name for s in SCRIPTS if "getDisplayedRegionShape" in text_of(s.name)}
    assert knowing == {"run_qpnuclei.groovy"}


def test_files_are_looked_for_under_the_names_that_run_gives_them(
    groovy: Groovy, tmp_path: Path
) -> None:
    names = ["he small.png", "A/B: 20×.svs", "½ mm² 組織 №5.tif", "end. .", "x" * 150, "𝒳" * 150]
    found = groovy.lines(
        tmp_path,
        "import_detections.groovy",
        "def script = new GroovyShell().parse(new File(args[0]).getText('UTF-8'))\n"
        "new File(args[1]).readLines('UTF-8').each { println script.fileStem('12', it) }\n",
        listed(tmp_path, names),
    )
    expected = [file_stem(cast(ImageEntry, SimpleNamespace(id="12", name=name))) for name in names]
    assert found == expected


# --- with JTS --------------------------------------------------------------------------------


def literal(value: object) -> str:
    """Return a value of JSON as Groovy code."""
    if isinstance(value, dict):
        return f"[{', '.join(f'({literal(k)}): {literal(v)}' for k, v in value.items()) or ':'}]"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"'{value}'" if isinstance(value, str) else repr(value)


def counted_by_script(groovy: Groovy, folder: Path, code: str, cases: list[object]) -> list[str]:
    """Run code with the script that counts as `script`, for each case as `it`."""
    return groovy.lines(
        folder,
        "export_counts.groovy",
        "import org.locationtech.jts.geom.*\n"
        "def script = new GroovyShell().parse(new File(args[0]))\n"
        "def cases = []\n"
        + "".join(f"cases << {literal(case)}\n" for case in cases)
        + "cases.each {\n"
        + code
        + "}\n",
    )


def test_the_script_has_the_rules_for_status_and_doubts(jts: Groovy, tmp_path: Path) -> None:
    cases = CASES["annotations"]
    found = counted_by_script(
        jts,
        tmp_path,
        "    def record = script.recordOf(it.record)\n"
        "    def geometry = it.rings ? script.valid(script.multiPolygon(it.rings)) : null\n"
        "    def status = script.statusOf(it.id, geometry, record)\n"
        '    def check = geometry == null ? "" : script.doubtsOf(it.id, geometry, record)\n'
        '    def isCounted = status != "not analysed"\n'
        '    def sizes = isCounted ? script.noteOfSizes(it.id, geometry, record, [0.5, 0.5]) : ""\n'
        "    def now = it.stains\n"
        '    def stains = isCounted ? script.noteOfStains(it.id, geometry, record, now) : ""\n'
        '    def gone = isCounted ? script.noteOfEmptied(it.id, geometry, record) : ""\n'
        "    def part = isCounted ? script.analysedPart(geometry, status, record) : null\n"
        "    def bounds = part?.getEnvelopeInternal()\n"
        '    def box = part == null ? "" : [bounds.minX, bounds.minY, bounds.maxX, bounds.maxY]\n'
        "    def isFull = part == null || part.getArea() == bounds.getArea()\n"
        "    def centre = part == null ? null : part.factory.createPoint(bounds.centre())\n"
        "    def hasCentre = part == null || part.covers(centre)\n"
        '    println "$status|$check|$sizes|$stains|$gone|$box|$isFull|$hasCentre"\n',
        [
            {
                "record": record_of(case),
                "id": id_of(case["annotation"]["id"]),
                "rings": rings(case["annotation"]),
                "stains": case.get("present stains", []),
            }
            for case in cases
        ],
    )
    for case, line in zip(cases, found, strict=True):
        status, check, sizes, stains, gone, part, *is_box = line.split("|")
        assert status == case["status"], case["case"]
        assert sizes == case.get("sizes", ""), case["case"]
        assert stains == case.get("stains", ""), case["case"]
        assert gone == case.get("gone", ""), case["case"]
        assert status == "not analysed" or check == case["check"], case["case"]
        if status != "not analysed" and "box" in case["annotation"]:
            assert json.loads(part) == case.get("part", case["annotation"]["box"]), case["case"]
            assert is_box == ["true", "true"], case["case"]


def test_the_script_compares_the_stains_that_a_run_records(groovy: Groovy, tmp_path: Path) -> None:
    three = Stains("three", ("a", "b", "c"), ((2, 1, 0), (0, 3, 4), (1, 1, 1)), (243, 244, 245))
    found = groovy.lines(
        tmp_path,
        "export_counts.groovy",
        "def script = new GroovyShell().parse(new File(args[0]))\n"
        "class Vector {\n"
        "    double red, green, blue\n"
        "    boolean residual\n"
        "}\n"
        "class Stains {\n"
        "    List vectors\n"
        "    double maxRed, maxGreen, maxBlue\n"
        "    Vector getStain(int number) { vectors[number - 1] }\n"
        "}\n"
        "println script.stainRows(null)\n"
        + "".join(
            "println script.stainRows(new Stains(vectors: ["
            + ", ".join(
                f"new Vector(red: {r}, green: {g}, blue: {b}, residual: {k} == {residual})"
                for k, (r, g, b) in enumerate(three.vectors, 1)
            )
            + "], maxRed: 243, maxGreen: 244, maxBlue: 245))\n"
            for residual in (0, 3)
        ),
    )
    two = replace(three, stain_names=three.stain_names[:2], vectors=three.vectors[:2])
    assert json.loads(found[0]) == []
    for line, stains in zip(found[1:], (three, two), strict=True):
        np.testing.assert_allclose(json.loads(line), stain_rows(stains), atol=1e-4)


def test_the_script_has_the_rules_for_classes(jts: Groovy, tmp_path: Path) -> None:
    cases = CASES["classes"]
    found = counted_by_script(
        jts,
        tmp_path,
        "    def images = it.images.collect { counts ->\n"
        "        def names = counts.keySet().sort()\n"
        '        def row = ["Num Detections": counts.values().sum() ?: 0]\n'
        "        row += script.numbersOf(names, counts) + script.sharesOf(names, counts)\n"
        "        return [classes: names, rows: [row]]\n"
        "    }\n"
        "    script.withAllClasses(images).each {\n"
        '        println it.collect { column, value -> "$column=$value" }.join("\\t")\n'
        "    }\n",
        list(cases),
    )
    expected = [
        {"Num Detections": sum(counts.values()), **columns}
        for case in cases
        for counts, columns in zip(case["images"], case["columns"], strict=True)
    ]
    for line, columns in zip(found, expected, strict=True):
        values = dict(pair.rsplit("=", 1) for pair in line.split("\t"))
        assert {name: float(value) for name, value in values.items()} == pytest.approx(columns)


def test_the_script_has_the_rules_for_nuclei_counted_twice(jts: Groovy, tmp_path: Path) -> None:
    cases = CASES["nuclei"]
    found = counted_by_script(
        jts,
        tmp_path,
        "    def nuclei = it.nuclei.withIndex().collect { nucleus, i ->\n"
        "        def (x0, y0, x1, y1) = nucleus.box\n"
        "        def outline = new GeometryFactory().toGeometry(new Envelope(x0, x1, y0, y1))\n"
        "        return [id: i, isOurs: nucleus.ours, plane: [nucleus.z ?: 0, 0],\n"
        "                outline: { outline }, bounds: outline.getEnvelopeInternal()]\n"
        "    }\n"
        "    def repeated = script.repeatedNuclei(nuclei)\n"
        '    println "note: " + script.noteOf(nuclei.collect { it.id }, repeated)\n',
        list(cases),
    )
    assert found == [f"note: {case['check']}" for case in cases]


def test_the_script_writes_cells_as_the_command_does(groovy: Groovy, tmp_path: Path) -> None:
    texts = ["", "a", "a,b", 'say "x"', "two\nlines", "cr\rend", '="a,b"', "a=b", "µ 組 𝒳", " x "]
    texts += ["=1+1", "-3", "+3", "@x", "\tx", "\rx", "half \ud83d", "\udfff,x"]
    found = groovy.lines(
        tmp_path,
        "export_counts.groovy",
        "def script = new GroovyShell().parse(new File(args[0]))\n"
        "args.drop(1).each { codes ->\n"
        "    def units = codes.findAll(/[^-]+/).collect { Integer.parseInt(it, 16) as char }\n"
        '    println script.cell(units.join()).getBytes("UTF-8").encodeHex()\n'
        "}\n"
        "[1 / 3d, 1e-7d, 12345678d, Double.NaN, Double.NEGATIVE_INFINITY, 7, null].each {\n"
        "    println script.cell(it)\n"
        "}\n",
        # A command line cannot have all characters on every system.
        *("-" + text.encode("utf-16-be", "surrogatepass").hex("-", -2) for text in texts),
    )
    for text, line in zip(texts, found, strict=False):
        (row,) = csv.reader(io.StringIO(bytes.fromhex(line).decode() + ",1\n", newline=""))
        expected = no_formula(text).encode(errors="backslashreplace").decode()
        assert row == [expected, "1"]
    assert [float(line or "nan") for line in found[len(texts) :]] == pytest.approx(
        [1 / 3, 1e-7, 12345678, np.nan, np.nan, 7, np.nan], nan_ok=True
    )


#: Prints columns of the row of an annotation, from what stands in for QuPath's objects.
ROW_OF_A_CASE = """
    def roiOf = { outline ->
        def box = outline.getEnvelopeInternal()
        return new Expando(
            getZ: { 0 }, getT: { 0 }, isArea: { true }, getGeometry: { outline },
            getRoiName: { "Polygon" }, getArea: { outline.getArea() },
            getBoundsX: { box.getMinX() }, getBoundsWidth: { box.getWidth() },
            getBoundsY: { box.getMinY() }, getBoundsHeight: { box.getHeight() },
            getCentroidX: { box.centre().x }, getCentroidY: { box.centre().y })
    }
    def boxOf = { x0, y0, x1, y1 ->
        roiOf(new GeometryFactory().toGeometry(new Envelope(x0, x1, y0, y1)))
    }
    def objectOf = { kind, className, id, roi, more ->
        new Expando([
            isDetection: { kind == "detection" }, isAnnotation: { kind == "annotation" },
            isTMACore: { false }, getPathClass: { className }, getROI: { roi },
            getID: { UUID.fromString(id) }] + more)
    }
    def detections = it.detections.collect { one ->
        def nucleus = boxOf(*one.nucleus)
        def list = new Expando(getMeasurementNames: { ["M"] }, get: { name -> one.M as double })
        def outer = one.cell ? boxOf(*one.cell) : nucleus
        def own = one.get("ours", true) ? it.ours : it.other
        return objectOf("detection", one.get("class", "Nucleus"), own, outer, [
            isCell: { one.cell != null }, getNucleusROI: { nucleus },
            getMeasurementList: { list }])
    }
    // As in QuPath, the area of a ring that crosses itself is a difference of its parts.
    def roi = roiOf(script.multiPolygon(it.rings).getGeometryN(0))
    def annotation = objectOf("annotation", "Tumor", it.id, roi, [getName: { "a" }])
    def hierarchy = new Expando(
        getFlattenedObjectList: { [annotation, *detections] },
        getObjectsForROI: { type, inside ->
            detections.findAll { script.valid(roi.getGeometry()).covers(script.centreOf(it)) } })
    script.setBinding(new Binding([PathDetectionObject: Object]))
    def record = script.recordOf(it.record)
    def row = script.count(hierarchy, [0.0005d, 0.0005d], [], record, [], it.classes).rows[0]
    println it.columns.collect { column -> script.cell(row[column]) }.join(",")
"""


def test_the_script_has_the_rules_for_rows(jts: Groovy, tmp_path: Path) -> None:
    cases = CASES["rows"]
    found = counted_by_script(
        jts,
        tmp_path,
        ROW_OF_A_CASE,
        [
            {
                "record": record_of(case),
                "id": id_of("A"),
                "rings": rings(case.get("annotation", {"box": [0, 0, 100, 100]})),
                "ours": str(nucleus_id(bytes(10))),
                "other": id_of("B"),
                "detections": case["detections"],
                "columns": list(case["row"]),
                "classes": case.get("classes", []),
            }
            for case in cases
        ],
    )
    for case, cells in zip(cases, csv.reader(found), strict=True):
        for (column, value), cell in zip(case["row"].items(), cells, strict=True):
            is_text = value is None or isinstance(value, str)
            found_value = cell if is_text else float(cell)
            expected = value or "" if is_text else pytest.approx(value)
            assert found_value == expected, (case["case"], column)


def builder_of(size: list[float] | None) -> dict[str, object]:
    """Return what a project stores of an image in a wrapper without metadata."""
    unit = "px" if size is None else "µm"
    width, height = ({"value": value, "unit": unit} for value in size or (1, 1))
    metadata = {"pixelCalibration": {"pixelWidth": width, "pixelHeight": height}}
    return {"builderType": "rotated", "builder": {"builderType": "uri", "metadata": metadata}}


def test_the_script_has_the_rules_for_pixel_sizes(jts: Groovy, tmp_path: Path) -> None:
    cases = CASES["pixel sizes"]
    found = counted_by_script(
        jts,
        tmp_path,
        "    def isOfProject = script.isOfProject(it.stored, it.own, it.slide)\n"
        "    println script.pixelSizeMm([used: it.used], it.own, isOfProject)\n",
        [
            {
                "used": case["used"],
                "own": case["project"] or case["slide"],
                "slide": case["slide"],
                "stored": builder_of(case["project"] if case.get("saved", True) else None),
            }
            for case in cases
        ],
    )
    for case, line in zip(cases, found, strict=True):
        expected = case["size"] and [value / 1000 for value in case["size"]]
        assert json.loads(line) == (expected and pytest.approx(expected, rel=1e-6)), case["case"]


# --- with QuPath's classes -----------------------------------------------------------------------

ANALYSE = ("--roi-all", "--mpp", "0.5", "--device", "cpu")


@pytest.fixture
def project(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a sample project, whose images QuPath is told to find in the copy."""
    installation = find_qupath()
    version = (installation.version if installation else None) or "0.5.1"
    sample = SAMPLES / version
    if not sample.exists():
        sample = SAMPLES / "0.4.4"  # which every later version reads

    def copy(name: str) -> Path:
        folder = Path(shutil.copytree(sample, tmp_path / name))
        path = folder / "project" / "project.qpproj"
        there = re.compile(r"file:/+home/pathology/qupath-samples/[\d.]+")
        path.write_text(there.sub(folder.as_uri(), path.read_text("utf-8")), "utf-8")
        return path

    return copy


def run_script(
    qupath: Groovy,
    name: str,
    project: Path,
    *arguments: object,
    selected: object = "-",
    **variables: str,
) -> str:
    return qupath.java(
        "groovy.ui.GroovyMain", RUNNER, project, FOLDER / name, selected, *arguments, **variables
    )


def analyse(project: Path, *options: object) -> None:
    command = [sys.executable, "-m", "qpnuclei", "run", project, *ANALYSE, *options]
    subprocess.run(
        [*map(str, command), "--quiet", "--backend", "native"], check=True, capture_output=True
    )


def contents(detections: Detections) -> dict[object, tuple[int, str | None]]:
    rows = zip(detections.ids, detections.parents.tolist(), detections.class_names, strict=True)
    return {identifier: (parent, class_name) for identifier, parent, class_name in rows}


@pytest.mark.qupath
@pytest.mark.slow
def test_counts_are_those_of_the_command(
    qupath: Groovy, project: Callable[[str], Path], tmp_path: Path
) -> None:
    path = project("counted")
    analyse(path)
    run_script(qupath, "export_counts.groovy", path, tmp_path / "counts.csv")
    with (tmp_path / "counts.csv").open(encoding="utf-8-sig", newline="") as stream:
        found = list(csv.DictReader(stream))
    opened = open_project(path)
    expected = count_project(opened, list(opened.images))
    write_counts(expected, tmp_path / "expected.csv")
    with (tmp_path / "expected.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert list(found[0]) == next(csv.reader(stream))
    assert len(found) == len(expected)
    assert sum(int(row["nuclei"]) for row in found) > 0
    for row, wanted in zip(found, expected, strict=True):
        for name, value in wanted.items():
            if isinstance(value, (int, float)):
                number = float(row[name] or "nan")
                assert number == pytest.approx(value, rel=1e-4, abs=1e-12, nan_ok=True), name
            else:
                assert row[name] == str(value or "")


@pytest.mark.qupath
@pytest.mark.slow
def test_import_gives_what_the_run_wrote_and_adds_nothing_twice(
    qupath: Groovy, project: Callable[[str], Path], tmp_path: Path
) -> None:
    analysed, other = project("analysed"), project("other")
    analyse(analysed, "--geojson", tmp_path / "geojson")
    for _ in range(2):
        run_script(qupath, "import_detections.groovy", other, tmp_path / "geojson")
        for a, b in zip(open_project(analysed).images, open_project(other).images, strict=True):
            assert contents(a.read().detections) == contents(b.read().detections)
    assert sum(1 for path in (tmp_path / "geojson").iterdir() for _ in read_objects(path)) > 0


@pytest.mark.qupath
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a shell script")
def test_run_analyses_the_selected_annotation_alone_and_loads_the_nuclei(
    qupath: Groovy, project: Callable[[str], Path], tmp_path: Path
) -> None:
    path = project("run")
    launcher = tmp_path / "qpnuclei"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qpnuclei "$@"\n')
    launcher.chmod(0o755)
    chosen = next(
        a for e in open_project(path).images for a in e.read().annotations if a.name == "polygon"
    )
    script = tmp_path / "run_qpnuclei.groovy"
    script.write_text(
        text_of(script.name)
        .replace("def options = []", 'def options = ["--mpp", "0.5", "--device", "cpu"]')
        .replace('["--roi-all"]', '["--roi", "Tumor"]'),
        encoding="utf-8",
    )
    log = qupath.java(
        "groovy.ui.GroovyMain", RUNNER, path, script, chosen.id, QPNUCLEI=str(launcher)
    )
    for entry in open_project(path).images:
        objects = entry.read()
        assert f"in memory: {entry.name}: {len(objects.detections)}\n" in log
        parents = {
            parent
            for parent, identifier in zip(
                objects.detections.parents.tolist(), objects.detections.ids, strict=True
            )
            if is_ours(identifier)
        }
        by_handle = {a.handle: a for a in objects.annotations}
        # QuPath has saved the image since.
        record = Record.of(objects.properties, "a.svs")
        for annotation in objects.annotations:
            is_meant = annotation.is_area and (
                annotation.id == chosen.id
                if chosen in objects.annotations
                else annotation.class_name == "Tumor"
            )
            assert record.has(annotation) == is_meant, annotation.label
        if chosen in objects.annotations:
            assert {by_handle[parent].id for parent in parents} == {chosen.id}
        else:
            assert {by_handle[parent].class_name for parent in parents} == {"Tumor"}
