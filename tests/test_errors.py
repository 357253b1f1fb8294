"""What a command line says where it ends early: one line and status 2, but a bug keeps its traceback."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from headjax.errors import InputError, run_main, shown


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a main that raises or calls something; gives its one line."""

    def end(main: Callable[[], object], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_main(lambda argv: main(), stopped="start it again to go on")
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return end


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a rule; got\nthis"), "a rule; got this"),
        (KeyboardInterrupt(), "stopped by Ctrl-C; start it again to go on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "there/file"),
            "a disk must have room; No space left on device: there/file",
        ),
    ],
)
def test_what_is_no_bug_is_one_line(ends, error: BaseException, line: str):
    assert ends(raising(error)) == line


@pytest.fixture
def unignored() -> Iterator[None]:
    """Signals as a terminal leaves them: what runs in the background, or under nohup, ignores some."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("unignored")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_say_how_to_go_on_and_files_are_put_away(ends, name: str):
    put_away, before = [], signal.getsignal(getattr(signal, name))

    def main() -> None:
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(20)
        finally:
            put_away.append(True)
            if name != "SIGINT":  # a terminal that closes sends more than one
                os.kill(os.getpid(), signal.SIGTERM)

    said = {"SIGINT": "Ctrl-C"}.get(name, name)
    assert ends(main) == f"stopped by {said}; start it again to go on"
    assert put_away
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(sys, "argv", ["program"])
        with pytest.raises(SystemExit) as ended:
            run_main(lambda argv: os.kill(os.getpid(), signal.SIGHUP))
        assert not ended.value.code
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", ["AssertionError", "RuntimeError(\"Unable to initialize backend 'cuda'\")"])
def test_a_device_that_is_not_there(ends, error: str, monkeypatch: pytest.MonkeyPatch):
    """JAX asserts where it finds no CUDA, and raises a RuntimeError where it finds no TPU."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    line = ends(lambda: exec(compile(f"raise {error}", "site-packages/jax/_src/xla_bridge.py", "exec")))
    assert line.startswith("JAX must have a device to run on; JAX_PLATFORMS is cuda")


def test_arguments_that_are_no_text(ends):
    assert ends(lambda: None, "--config=\udcff") == r"arguments must be UTF-8 text; got '--config=\udcff'"


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError(errno.EACCES, "x"), AssertionError(), RuntimeError()]
)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(type(error)):
        run_main(lambda argv: raising(error)())


def test_what_is_shown_is_one_short_line():
    for value in ("a\nb" * 999, "\ud800", 10**9999, [1] * 999, {"a": ["b" * 999]}, "\x1b[31m"):
        text = shown(value)
        assert text.isprintable()
        assert len(text) <= 200
