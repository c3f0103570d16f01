from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from qpnuclei.qupath import _jvm
from qpnuclei.qupath._jvm import bind, element_of, fan_out, item_of, method, pipe, static
from qpnuclei.qupath.backend import choose_backend


@pytest.mark.parametrize(
    "options", [["-Xmx2g", "-Dx=1"], "-Xmx2g -Dx=1", ["-XX:MaxRAMPercentage=30"], "-XX:MaxRAM=9g"]
)
def test_a_heap_that_the_user_sets_stays(options: str | list[str]) -> None:
    expected = options.split() if isinstance(options, str) else options
    assert _jvm._java_options({"java_opts": options}) == expected


def test_the_heap_is_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jvm, "available_memory", lambda: 6 << 30)
    default = ["-Dx=1", "-XX:MaxRAMPercentage=50"]  # paquo's own default, a share of the machine's
    assert _jvm._java_options({"java_opts": default}) == ["-Dx=1", "-Xmx3072m"]
    monkeypatch.setattr(_jvm, "available_memory", lambda: None)
    assert _jvm._java_options({"java_opts": default}) == default


def test_memory_is_limited_by_every_cgroup_above(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = tmp_path / "job" / "step"
    leaf.mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("1000000\n")
    (leaf / "memory.max").write_text("max\n")
    monkeypatch.setattr(_jvm, "_cgroups", lambda: [(leaf, "memory.max")])
    assert _jvm.available_memory() == 1_000_000


@pytest.fixture
def java() -> None:
    if choose_backend() != "paquo":
        pytest.skip("no QuPath 0.4 or newer found: set PAQUO_QUPATH_DIR")
    _jvm.start()


def java_list(*items: object) -> _jvm.JavaObject:
    made = _jvm.java_class("java.util.ArrayList")()
    for item in items:
        made.add(item)
    return made


@pytest.mark.qupath
@pytest.mark.usefixtures("java")
class TestLoops:
    def test_columns_of_a_list(self) -> None:
        strings = java_list("b", "", "ccc")
        length = method("java.lang.String", "length", "int")
        assert _jvm.ints(strings, length).tolist() == [1, 0, 3]
        upper = method("java.lang.String", "toUpperCase", "java.lang.String")
        assert _jvm.texts(strings, upper) == ["B", "", "CCC"]
        kept = _jvm.keep_if(strings, method("java.lang.String", "isEmpty", "boolean"))
        assert kept.size() == 1
        assert _jvm.texts(kept, method("java.lang.String", "trim", "java.lang.String")) == [""]

    def test_null_is_an_empty_text(self) -> None:
        made = _jvm.java_class("qupath.lib.objects.PathObjects").createDetectionObject(
            _jvm.java_class("qupath.lib.roi.ROIs").createEmptyROI()
        )
        to_class = method(
            "qupath.lib.objects.PathObject",
            "getPathClass",
            "qupath.lib.objects.classes.PathClass",
        )
        assert _jvm.texts(java_list(made, made), to_class) == ["", ""]
        assert _jvm.texts(java_list(), to_class) == []

    def test_functions_of_an_index(self) -> None:
        doubles = element_of(_jvm.double_array([0.5, 2.5, -1]))
        ints = element_of(_jvm.int_array([3, 2, 1]))
        power = static("java.lang.Math", "pow", "double", "double", "double")
        text = static("java.lang.String", "valueOf", "java.lang.String", "double")
        made = _jvm.make_list(3, pipe(fan_out(power, doubles, ints), text))
        assert list(map(str, made)) == ["0.125", "6.25", "-1.0"]
        assert list(map(str, _jvm.take(made, np.array([2, 0])))) == ["-1.0", "0.125"]

    def test_calls_for_their_effect(self) -> None:
        lists = java_list(java_list(), java_list())
        add = method("java.util.ArrayList", "add", "boolean", "java.lang.Object")
        names = _jvm.string_array(["a", "b"])
        _jvm.for_each(2, fan_out(add, item_of(lists, "java.util.ArrayList"), element_of(names)))
        _jvm.for_each(2, pipe(item_of(lists, "java.util.ArrayList"), bind(add, 1, "z")))
        assert [list(map(str, one)) for one in lists] == [["a", "z"], ["b", "z"]]


@pytest.mark.qupath
@pytest.mark.usefixtures("java")
def test_standard_output_stays_clean_and_ctrl_c_reaches_python() -> None:
    code = """
        import os, signal
        from qpnuclei.qupath import _jvm
        _jvm.start()
        _jvm.java_class("java.lang.System").out.println("from Java")
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        except KeyboardInterrupt:
            print("stopped")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert (result.stdout, result.returncode) == ("stopped\n", 0)


@pytest.mark.qupath
@pytest.mark.usefixtures("java")
def test_ctrl_c_while_java_starts_waits_for_it() -> None:
    code = """
        import signal, jpype
        from paquo import jpype_backend
        from qpnuclei.qupath import _jvm
        start_jvm = jpype_backend.start_jvm
        def interrupted(**settings):
            signal.raise_signal(signal.SIGINT)
            return start_jvm(**settings)
        jpype_backend.start_jvm = interrupted
        try:
            _jvm.start()
        except KeyboardInterrupt:
            print("started:", jpype.isJVMStarted())
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert (result.stdout, result.returncode) == ("started: True\n", 0)
