"""The one error class for input a user can mend, and how a command line shows it."""

import contextlib
import errno
import os
import reprlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

MAX_SHOWN = 200

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = MAX_SHOWN
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxarray = 12


def shown(value: object) -> str:
    """A value as an error message echoes it: one printable line of at most MAX_SHOWN characters.

    Text of an exception, or that is passed as an exception, is shown as it is; anything else by its repr.
    """
    try:
        text = str(value) if isinstance(value, BaseException) else _repr.repr(value)
    except Exception:  # a repr that fails, or an integer too long to write out
        text = f"a {type(value).__name__}"
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a tensor, a field, a name.

    The message states the rule, then what came, and names the file, tensor or field. Command lines
    print it as one line and exit with status 2; every other exception is a bug and keeps its traceback.
    """


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end; the message says which."""


def run_main(
    main: Callable[[list[str]], object], *, unknown_flags: bool = False, stopped: str = "start it again"
) -> None:
    """Parses absl's flags, runs `main` and exits: 0, or 2 with one line for what is no bug.

    That is a flag or an input at fault, Ctrl-C, SIGTERM or SIGHUP, a full disk, and a device that is not
    there. `main` gets the arguments that are no flags; with `unknown_flags` also flags that nobody defined.
    `stopped` says how to go on after a signal.
    """
    from absl import app, flags, logging

    def refuse(error: BaseException | str) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)

    def parse(argv: list[str]) -> list[str]:
        for argument in argv:
            if any("\ud800" <= c <= "\udfff" for c in argument):  # bytes that are no UTF-8
                refuse(f"arguments must be UTF-8 text; got {shown(argument)}")
        try:
            rest = flags.FLAGS(argv, known_only=unknown_flags)
            if flags.FLAGS["verbosity"].using_default_value:
                logging.set_verbosity(logging.WARNING)  # below it, libraries report every step of theirs
            return rest
        except flags.Error as error:
            return refuse(error)

    def guarded(argv: list[str]) -> None:
        try:
            with _signals_raised():
                main(argv)
        except InputError as error:
            refuse(error)
        except KeyboardInterrupt as error:
            refuse(f"stopped by {str(error) or 'Ctrl-C'}; {stopped}")
        except Exception as error:
            if not (found := _outside(error)):
                raise
            refuse(found)

    app.run(guarded, flags_parser=parse)


def _outside(error: Exception) -> str:
    """One line for a fault of the machine's, not ours; empty for any other."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"a disk must have room; {error.strerror}" + f": {error.filename}" * bool(error.filename)
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    if raised_in.endswith("xla_bridge.py"):  # where JAX looks for devices; of CUDA's absence it only asserts
        asked = os.environ.get("JAX_PLATFORMS") or "not set"
        return f"JAX must have a device to run on; JAX_PLATFORMS is {asked}" + f": {shown(error)}" * bool(
            str(error)
        )
    return ""


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Raises Stopped for Ctrl-C, SIGTERM and SIGHUP, once, unless they are ignored (nohup) or taken."""
    names = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}
    before = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:  # what comes while files are put away; a second Ctrl-C ends it at once
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        raise Stopped(names[signal.Signals(number).name])

    if threading.current_thread() is threading.main_thread():
        for name in names:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) in (
                signal.SIG_DFL,
                signal.default_int_handler,
            ):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
