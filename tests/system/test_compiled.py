"""Compiled functions: order of sums, and caching."""

import numpy as np

from qpnuclei.system.compiled import _warn_no_cache, compiled


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
