"""Fonts: one with metrics for print, and for every character one that has it, or else a clear word."""

import unicodedata
from functools import cache
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

# Arial's metrics, which journals ask for: the first that there is. The last comes along with matplotlib.
PRINT = ("Arial", "Liberation Sans", "Nimbus Sans", "Helvetica")
LAST = "DejaVu Sans"
N_CODES = 4  # of characters that no font has, named in a word


@cache
def families() -> tuple[str, ...]:
    """The fonts of all figures, the first choice first."""
    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():  # matplotlib's list may be older than a font
        if path not in known:
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError):
                continue
    names = {font.name for font in fontManager.ttflist}
    return (*[name for name in PRINT if name in names][:1], LAST)


def drawable(text: str) -> str:
    """The text with words like `[CJK 56FD]` for characters that no font of this machine has.

    Where a font has them, texts made after this use it too, as long as the figures' style is in force.
    Characters that only steer others are left out.
    """
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf"))
    missing = {c for c in text if ord(c) not in _covered(families())}
    for name in _other_fonts() if missing else ():
        if found := {c for c in missing if ord(c) in _characters(name)}:
            missing -= found
            if name not in matplotlib.rcParams["font.family"]:
                matplotlib.rcParams["font.family"] = [*matplotlib.rcParams["font.family"], name]
    parts = groupby(text, key=missing.__contains__)
    return "".join(_word("".join(part)) if lost else "".join(part) for lost, part in parts)


def _word(text: str) -> str:
    script = unicodedata.name(text[0], "character").split()[0]
    script = script if script.isupper() and len(script) < 4 else script.capitalize()
    codes = [f"{ord(c):04X}" for c in text]
    return f"[{' '.join([script, *codes[:N_CODES], *['...'] * (len(codes) > N_CODES)])}]"


@cache
def _covered(names: tuple[str, ...]) -> frozenset[int]:
    return frozenset().union(*map(_characters, names))


@cache
def _characters(name: str) -> frozenset[int]:
    """The characters a font has; none where it cannot be read, or has pictures in place of outlines."""
    path = findfont(FontProperties(family=name))
    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _other_fonts() -> tuple[str, ...]:
    """Further fonts of this machine, those without serifs first; not matplotlib's own, made for formulas."""
    own = Path(matplotlib.get_data_path())
    names = {
        font.name
        for font in fontManager.ttflist
        if own not in Path(font.fname).parents
        and (font.style, font.weight, font.stretch) == ("normal", 400, "normal")
    }
    return tuple(sorted(names - set(families()), key=lambda name: ("Sans" not in name, name)))
