from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from qpnuclei.qupath.paquo import jvm
from qpnuclei.qupath.paquo.jvm import method
from qpnuclei.qupath.project import choose_backend


@pytest.mark.parametrize(
    "options", [["-Xmx2g", "-Dx=1"], "-Xmx2g -Dx=1", ["-XX:MaxRAMPercentage=30"], "-XX:MaxRAM=9g"]
)
def test_a_heap_that_the_user_sets_stays(options: str | list[str]) -> None:
    expected = options.split() if isinstance(options, str) else options
    ours = [jvm.NO_FORCED_COLLECTION, jvm.COLLECTOR]
    assert jvm._java_options({"java_opts": options}) == [*ours, *expected]


def test_a_collector_that_the_user_chooses_is_the_only_one() -> None:
    options = ["-XX:+UseG1GC", "-Xmx2g"]
    assert jvm._java_options({"java_opts": options}) == [jvm.NO_FORCED_COLLECTION, *options]


def test_the_heap_is_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jvm, "available_memory", lambda: 6 << 30)
    chosen = {"java_opts": ["-Dx=1"]}
    assert jvm._java_options(chosen)[2:] == ["-Dx=1", "-Xmx3072m"]
    monkeypatch.setattr(jvm, "available_memory", lambda: None)
    assert jvm._java_options(chosen)[2:] == ["-Dx=1", "-XX:MaxRAMPercentage=50"]


@pytest.fixture
def java() -> None:
    if choose_backend() != "paquo":
        pytest.skip("no QuPath 0.4 or newer found: set PAQUO_QUPATH_DIR")
    jvm.start()


def java_list(*items: object) -> jvm.JavaObject:
    made = jvm.java_class("java.util.ArrayList")()
    for item in items:
        made.add(item)
    return made


@pytest.mark.qupath
@pytest.mark.usefixtures("java")
class TestLoops:
    def test_columns_of_a_list(self) -> None:
        strings = java_list("b", "", "ccc")
        length = method("java.lang.String", "length", "int")
        assert jvm.ints(strings, length).tolist() == [1, 0, 3]
        upper = method("java.lang.String", "toUpperCase", "java.lang.String")
        assert jvm.texts(strings, upper) == ["B", "", "CCC"]
        kept = jvm.keep_if(strings, method("java.lang.String", "isEmpty", "boolean"))
        assert kept.size() == 1
        assert jvm.texts(kept, method("java.lang.String", "trim", "java.lang.String")) == [""]

    def test_null_is_an_empty_text(self) -> None:
        made = jvm.java_class("qupath.lib.objects.PathObjects").createDetectionObject(
            jvm.java_class("qupath.lib.roi.ROIs").createEmptyROI()
        )
        to_class = method(
            "qupath.lib.objects.PathObject",
            "getPathClass",
            "qupath.lib.objects.classes.PathClass",
        )
        assert jvm.texts(java_list(made, made), to_class) == ["", ""]
        assert jvm.texts(java_list(), to_class) == []

    def test_chosen_items(self) -> None:
        letters = java_list("a", "b", "c")
        assert list(map(str, jvm.take(letters, np.array([2, 0])))) == ["c", "a"]
        assert jvm.take(letters, np.array([], np.int64)).isEmpty()


@pytest.mark.qupath
@pytest.mark.usefixtures("java")
def test_bytes_in_java() -> None:
    array = jvm.byte_array(bytearray(b"\x07\xff\x80"))
    assert str(jvm.java_class("java.util.Arrays").toString(array)) == "[7, -1, -128]"
    assert len(jvm.byte_array(bytearray())) == 0


def end_of(code: str) -> tuple[str, int]:
    """Return what a program prints, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    return done.stdout, done.returncode


@pytest.mark.qupath
@pytest.mark.usefixtures("java")
def test_standard_output_stays_clean_and_ctrl_c_reaches_python() -> None:
    code = """
        import os, signal
        from qpnuclei.qupath.paquo import jvm
        jvm.start()
        jvm.java_class("java.lang.System").out.println("from Java")
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        except KeyboardInterrupt:
            print("stopped")
    """
    assert end_of(code) == ("stopped\n", 0)


@pytest.mark.qupath
@pytest.mark.usefixtures("java")
def test_ctrl_c_while_java_starts_waits_for_it() -> None:
    code = """
        import signal, jpype
        from paquo import jpype_backend
        from qpnuclei.qupath.paquo import jvm
        start_jvm = jpype_backend.start_jvm
        def interrupted(**settings):
            signal.raise_signal(signal.SIGINT)
            return start_jvm(**settings)
        jpype_backend.start_jvm = interrupted
        try:
            jvm.start()
        except KeyboardInterrupt:
            print("started:", jpype.isJVMStarted())
    """
    assert end_of(code) == ("started: True\n", 0)
