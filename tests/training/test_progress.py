"""Ctrl-C, and what a training shows while it runs."""

import errno
import io
import re
import signal
import sys
import threading

import pytest
from runs import run

from fastrnn import training
from fastrnn.training import Interrupt, Progress


def terminal(monkeypatch):
    """Let standard error be a terminal; return what is written to it."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    return shown


def test_a_bar_is_drawn_in_a_terminal_by_default(monkeypatch):
    pytest.importorskip("tqdm")
    shown = terminal(monkeypatch)
    run(steps=3)
    assert re.search(r"100%\|.*\| loss [\d.e-]+, [\d,]+/s \[", shown.getvalue())


def test_a_bar_is_drawn_if_it_is_asked_for(capsys):
    pytest.importorskip("tqdm")
    run(steps=3, progress=True)
    assert re.search(r"100%\|.*\| loss [\d.e-]+, [\d,]+/s \[", capsys.readouterr().err)


@pytest.mark.parametrize("how", ["not a terminal", "not wanted", "no tqdm", "none", "closed"])
def test_there_is_no_bar_otherwise(how, monkeypatch):
    shown = terminal(monkeypatch)
    if how == "not a terminal":
        monkeypatch.setattr(shown, "isatty", lambda: False)
    elif how == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    elif how == "none":
        monkeypatch.setattr(sys, "stderr", None)
    elif how == "closed":
        shown.close()
    run(steps=3, **({"progress": False} if how == "not wanted" else {}))
    if how != "closed":
        assert shown.getvalue() == ""


def test_without_tqdm_a_bar_that_is_asked_for_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match="tqdm"):
        run(steps=3, progress=True)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_standard_error_that_is_full_ends_the_bar_and_no_training(monkeypatch, written):
    pytest.importorskip("tqdm")
    times = []

    class Gone(io.StringIO):
        def write(self, text):
            times.append(text)
            if len(times) > written:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(text)

    monkeypatch.setattr(sys, "stderr", Gone())
    with training.progress_bar() as show:
        for k in range(1, 5):
            show(Progress(k, 10, float(k), 0.5, k / 4))
        tried = len(times)
        show(Progress(5, 10, 9.0, 0.5, 1.0))
        assert len(times) == tried  # nothing more is written
    assert tried > written
    assert run(steps=3, progress=True)[2].stopped == "done"


def test_a_bar_with_words_of_the_caller(capsys):
    pytest.importorskip("tqdm")
    with training.progress_bar("{0.steps} steps, {0.bits:.1f} bits".format) as show:
        show(Progress(3, 10, 0.5, 0.0, 0.25))
        show(Progress(4, 10, 0.6, 0.0, 0.5))  # too soon after the last
        show(Progress(5, 10, 0.7, 0.0, 1.0))
    err = capsys.readouterr().err
    assert "3 steps, 0.0 bits" in err
    assert "4 steps" not in err
    assert re.search(r"100%\|.*\| 5 steps, 0.0 bits", err)


def test_a_function_is_called_with_the_progress_after_every_step():
    seen = []
    run(steps=4, progress=lambda now: seen.append((now.steps, now.fraction, now.speed > 0)))
    assert seen == [(1, 0.25, True), (2, 0.5, True), (3, 0.75, True), (4, 1.0, True)]
    assert Progress().speed == 0


# ---------------------------------------------------------------------------------------- Ctrl-C


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_ctrl_c_asks_and_the_second_raises():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        press()
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_serves_again():
    interrupt = Interrupt()
    for _ in range(2):
        with interrupt:
            assert len(run(steps=3, interrupt=interrupt)[-1].losses) == 3
            press()
            assert interrupt.asked


def test_an_interrupt_of_the_caller_stops_fit_between_steps():
    with Interrupt() as interrupt:
        history = run(steps=10, interrupt=interrupt,
                      progress=lambda now: now.steps == 4 and press())[2]
    assert history.stopped == "interrupted"
    assert history.progress.steps == 4
    with pytest.raises(KeyboardInterrupt):
        run(steps=10, progress=lambda now: (press(), press()))


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_the_handler_before_is_restored(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(OSError, match="inside"), Interrupt():
            raise OSError("inside")
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_python_did_not_set_stays(monkeypatch):
    """In a program that embeds Python the handler is None for Python."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *args: pytest.fail("a handler was set"))
    assert run(steps=2)[2].stopped == "done"


def test_a_subinterpreter_has_no_signals(monkeypatch):
    def refuse(*args):
        raise ValueError("signal only works in main thread of the main interpreter")

    monkeypatch.setattr(signal, "signal", refuse)
    assert run(steps=2)[2].stopped == "done"


def test_other_threads_train_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(run(steps=2)[2].stopped))
    thread.start()
    thread.join()
    assert found == ["done"]
