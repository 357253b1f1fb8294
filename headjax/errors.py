"""The one error class for input a user can mend, and how a command line shows it."""

import reprlib
import sys
from collections.abc import Callable

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


def run_main(main: Callable[[list[str]], object], *, unknown_flags: bool = False) -> None:
    """Parses absl's flags, runs `main` and exits: 0, or 2 with one line for a flag or an input at fault.

    `main` gets the arguments that are no flags; with `unknown_flags` also flags that nobody defined.
    """
    from absl import app, flags, logging

    def refuse(error: Exception) -> None:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv, known_only=unknown_flags)
            if flags.FLAGS["verbosity"].using_default_value:
                logging.set_verbosity(logging.WARNING)  # below it, libraries report every step of theirs
            return rest
        except flags.Error as error:
            return refuse(error)

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except InputError as error:
            refuse(error)

    app.run(guarded, flags_parser=parse)
