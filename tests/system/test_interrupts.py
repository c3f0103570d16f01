"""Signals are raised at exact places of a program of their own: they may end the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from qpnuclei.system.interrupts import interrupt_postponed

pytestmark = pytest.mark.usefixtures("interrupts_are_heard")


def end_of(program: str) -> tuple[int, str, str]:
    """Return how a program ends: its exit code, and what it wrote to its two outputs."""
    head = """
        import atexit, signal, sys, threading, time
        from qpnuclei.system.interrupts import (
            asking_to_stop, before_leaving, ending_on_interrupt, interrupt_postponed,
            leaving_on_interrupt
        )
        def ctrl_c():
            signal.raise_signal(signal.SIGINT)
        def terminate():
            signal.raise_signal(signal.SIGTERM)
        def say(what):
            print(what, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_cleaning_up_is_not_interrupted_a_second_time() -> None:
    program = """
        with ending_on_interrupt():
            try:
                ctrl_c()
                say("not said")
            finally:
                ctrl_c()
                say("cleaned up")
    """
    assert end_of(program) == (130, "cleaned up\n", "interrupted\n")


@pytest.mark.parametrize("error", ["ImportError('half imported')", "SystemExit(1)"])
def test_an_interrupt_that_libraries_convert_is_still_one(error: str) -> None:
    program = f"""
        with ending_on_interrupt():
            try:
                ctrl_c()
            except KeyboardInterrupt:
                raise {error}
    """
    assert end_of(program) == (130, "", "interrupted\n")


def test_other_exceptions_pass() -> None:
    assert end_of("with ending_on_interrupt(): sys.exit(2)") == (2, "", "")
    code, _, message = end_of("with ending_on_interrupt(): 1 / 0")
    assert code == 1
    assert message.endswith("ZeroDivisionError: division by zero\n")


def test_an_interrupt_after_the_block_is_ignored() -> None:
    program = """
        atexit.register(lambda: (ctrl_c(), say("tidy")))
        with ending_on_interrupt():
            say("done")
        ctrl_c()
    """
    assert end_of(program) == (0, "done\ntidy\n", "")


def test_the_first_interrupt_asks_and_the_second_ends() -> None:
    program = """
        with ending_on_interrupt(), asking_to_stop("stopping") as asked:
            say(asked())
            ctrl_c()
            say(asked())
            ctrl_c()
            say("not said")
    """
    code, said, message = end_of(program)
    assert (code, said) == (130, "False\nTrue\n")
    assert message == "stopping\nended at once: the last save is kept\n"


def test_a_request_to_stop_may_be_quiet_and_ends_with_its_block() -> None:
    program = """
        before = signal.getsignal(signal.SIGTERM)
        with asking_to_stop("") as asked:
            signal.raise_signal(signal.SIGTERM)
        say(asked() and signal.getsignal(signal.SIGTERM) is before)
        say(asked.exit_code)
        with ending_on_interrupt(), asking_to_stop("") as asked:
            ctrl_c()
        say(asked.exit_code)
    """
    assert end_of(program) == (0, "True\n143\n130\n", "")


def test_leaving_does_not_wait_for_threads_that_compute() -> None:
    program = """
        threading.Thread(target=time.sleep, args=[100]).start()
        with ending_on_interrupt(), leaving_on_interrupt("away"):
            ctrl_c()
            say("not said")
    """
    assert end_of(program) == (130, "", "away\n")


def test_leaving_from_where_exceptions_are_ignored() -> None:
    program = """
        class Ignoring:
            def __del__(self):
                ctrl_c()
        with leaving_on_interrupt("away"):
            Ignoring()
            say("not said")
    """
    assert end_of(program) == (130, "", "away\n")


def test_leaving_holds_for_the_block_alone() -> None:
    program = """
        with ending_on_interrupt():
            with leaving_on_interrupt("away"):
                pass
            try:
                ctrl_c()
            finally:
                say("cleaned up")
    """
    assert end_of(program) == (130, "cleaned up\n", "interrupted\n")


def test_leaving_waits_for_what_must_be_completed() -> None:
    program = """
        with leaving_on_interrupt("away"):
            with interrupt_postponed():
                ctrl_c()
                ctrl_c()
                say("completed")
            say("not said")
    """
    assert end_of(program) == (130, "completed\n", "away\n")


def test_sigterm_gives_an_exit_code_of_its_own() -> None:
    program = """
        with before_leaving(lambda number: say(number == signal.SIGTERM)):
            with before_leaving(lambda number: 1 / 0):
                with leaving_on_interrupt("interrupted: what was saved is kept"):
                    with interrupt_postponed():
                        terminate()
                        say("completed")
                    say("not said")
    """
    said = "completed\nTrue\n"
    assert end_of(program) == (143, said, "terminated: what was saved is kept\n")


def test_sigterm_unwinds_as_ctrl_c_does() -> None:
    program = """
        with ending_on_interrupt():
            try:
                terminate()
            finally:
                terminate()
                say("cleaned up")
    """
    assert end_of(program) == (143, "cleaned up\n", "terminated\n")


def test_a_postponed_interrupt_is_what_it_was() -> None:
    completed = []

    def work() -> None:
        with interrupt_postponed():
            signal.raise_signal(signal.SIGINT)
            completed.append(True)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert completed
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_comes_with_the_interrupt() -> None:
    def work() -> None:
        with interrupt_postponed():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("both")

    with pytest.raises(KeyboardInterrupt) as raised:
        work()
    assert isinstance(raised.value.__context__, ValueError)


def test_threads_that_no_signal_reaches_are_not_refused() -> None:
    done = []

    def work() -> None:
        with interrupt_postponed():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
