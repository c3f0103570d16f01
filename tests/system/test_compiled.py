"""Compiled functions: order of sums, and caching."""

import ast
import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qpnuclei.system.compiled import _announce_compiling, _warn_no_cache, compiled
from tests.paths import ROOT

PACKAGE = ROOT / "qpnuclei"


def running_sum(values):
    result = np.empty_like(values)
    total = 0.0
    for i in range(len(values)):
        total += values[i]
        result[i] = total
    return result


def test_sums_are_taken_in_the_order_they_are_written():
    values = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.linspace(0, 9, 1000)
    np.testing.assert_array_equal(compiled(running_sum)(values), running_sum(values))


def test_machine_code_need_not_be_kept_and_that_is_said_once(caplog):
    _warn_no_cache.cache_clear()
    # Where its file lies (nowhere), nothing can be written.
    names: dict[str, object] = {}
    code = "def double(x):\n    return 2 * x\n"
    exec(compile(code, "/no such folder/module.py", "exec"), names)  # noqa: S102
    for _ in range(2):
        assert compiled(names["double"])(21) == 42  # type: ignore[arg-type]
    assert caplog.text.count("NUMBA_CACHE_DIR") == 1


def test_a_compiled_function_may_call_another(tmp_path, monkeypatch, caplog):
    """In its module, in a module that imports it, and said once that compiling takes its time."""
    (tmp_path / "inner.py").write_text(
        "from qpnuclei.system.compiled import compiled\n"
        "@compiled\ndef twice(x):\n    return 2 * x\n"
        "@compiled\ndef four_times(x):\n    return twice(twice(x))\n"
    )
    (tmp_path / "outer.py").write_text(
        "from inner import four_times\nfrom qpnuclei.system.compiled import compiled\n"
        "@compiled\ndef plus_one(x):\n    return four_times(x) + 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    caplog.set_level("INFO")
    _announce_compiling.cache_clear()
    inner, outer = map(importlib.import_module, ("inner", "outer"))
    four_times, twice, plus_one = inner.four_times, inner.twice, outer.plus_one

    assert [plus_one(3), four_times(3), twice(3)] == [13, 12, 6]
    assert plus_one.__name__ == "plus_one"
    assert caplog.text.count("compiling loops, once") == 1


def test_functions_that_are_called_from_many_threads_at_once_are_compiled_once():
    double = compiled(running_sum)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(double, [np.ones(5)] * 16))
    np.testing.assert_array_equal(results, [[1, 2, 3, 4, 5]] * 16)
    assert len(double.dispatcher().signatures) == 1


def test_compiled_functions_call_none_of_other_modules():
    """Their kept machine code would not notice that one of another file has changed."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    trees = {
        name: ast.parse(text)
        for name, path in files.items()
        if "@compiled\n" in (text := path.read_text(encoding="utf-8"))
    }
    loops = {name: compiled_in(tree) for name, tree in trees.items()}
    assert "copy_pieces" in {f.name for f in loops["qpnuclei.qupath.qpdata.kernels"]}
    for name, tree in trees.items():
        foreign = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module in loops
            for alias in node.names
            if alias.name in {f.name for f in loops[node.module]}
        }
        used = {n.id for f in loops[name] for n in ast.walk(f) if isinstance(n, ast.Name)}
        assert not foreign & used, name


def compiled_in(tree):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "compiled" for d in node.decorator_list)
    ]
