"""Heads that published circuits name, with their sources, and marks that a user gives.

The heads called "capital heads" in the relation-score literature were published only as crosses in a picture,
so no list of them is carried here; such marks come from a file or from a circuit that was found.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headjax.axes import Head
from headjax.errors import InputError, shown
from headjax.io import parse_json, read_text

# What a file of marks may hold: more heads than any model has, in any spelling.
MAX_HEADS = 20_000
MAX_BYTES = 1_000_000
MAX_NAME = 200  # characters of a role, and of the legend's title
N_NAMED = 10  # heads that an error names


@dataclass(frozen=True)
class Circuit:
    """Heads by the role they play.

    `model` is the alias of the model it was found in, empty for a user's own marks; `legend` is the title of
    a figure's legend, which names the source.
    """

    model: str
    citation: str
    legend: str
    roles: Mapping[str, tuple[Head, ...]]

    def heads(self) -> tuple[Head, ...]:
        """All its heads once, in (layer, head) order."""
        return tuple(sorted({head for heads in self.roles.values() for head in heads}))


def parse_heads(text: str) -> tuple[Head, ...]:
    """Heads in any spelling (`L9H6`, `9.6`, `(9, 6)`) separated by commas, semicolons or white space."""
    labels = re.findall(r"(?:\([^()]*\)|[^\s,;])+", text)
    _check_count(len(labels))
    return tuple(dict.fromkeys(map(Head.parse, labels)))


def _check_count(n: int) -> None:
    """Raises InputError for more heads than any model has."""
    if n > MAX_HEADS:
        raise InputError(f"at most {MAX_HEADS:,} heads can be marked; got {n:,}")


CIRCUITS = {
    "ioi": Circuit(
        model="gpt2",
        citation=(
            "K. Wang, A. Variengien, A. Conmy, B. Shlegeris, J. Steinhardt. Interpretability in the Wild: "
            "a Circuit for Indirect Object Identification in GPT-2 Small. ICLR 2023. arXiv:2211.00593"
        ),
        legend="'Interpretability in the Wild' classifications",
        roles={
            "Name movers": parse_heads("9.9 9.6 10.0"),
            "Negative name movers": parse_heads("10.7 11.10"),
            "Backup name movers": parse_heads("9.0 9.7 10.1 10.2 10.6 10.10 11.2 11.9"),
            "S-inhibition": parse_heads("7.3 7.9 8.6 8.10"),
            "Induction": parse_heads("5.5 5.8 5.9 6.9"),
            "Duplicate token": parse_heads("0.1 0.10 3.0"),
            "Previous token": parse_heads("2.2 4.11"),
        },
    ),
    "circuit_reuse": Circuit(
        model="gpt2-medium",
        citation=(
            "J. Merullo, C. Eickhoff, E. Pavlick. Circuit Component Reuse Across Tasks in Transformer "
            "Language Models. ICLR 2024. arXiv:2310.08744"
        ),
        legend="'Circuits Components Reused' classifications",
        roles={
            "Movers": parse_heads("14.14 15.14 16.15 17.4 18.5 19.15"),
            "Negative mover": parse_heads("19.1"),
            "Inhibition": parse_heads("12.3 13.4 13.13"),
            "Induction": parse_heads("9.3"),
            "Duplicate token": parse_heads("6.4"),
            "Content gatherers": parse_heads("11.6 11.7 12.15"),
        },
    ),
}


def find_circuit(source: str | Path | Sequence[str]) -> Circuit:
    """The circuit a user means: the name of a published one, a file of marks, or the marks themselves.

    `"ioi"`; `"capital_heads.json"`; `"L9H6, 9.9"`; `["L9H6", "9.9"]`. Raises InputError for anything else.
    """
    if isinstance(source, str) and source in CIRCUITS:
        return CIRCUITS[source]
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith((".json", ".txt"))):
        return read_circuit(source)
    try:
        return _marks({"Marked heads": source}, "marks", "Marked by the user")
    except InputError as error:
        raise InputError(
            f"marks are a published circuit ({', '.join(CIRCUITS)}), a .json or .txt file, or heads; {error}"
        ) from error


def read_circuit(path: str | Path) -> Circuit:
    """Reads marks from a file; the legend is titled with the file's name unless the file gives a title.

    Text: heads separated by white space or commas, `#` starts a comment. JSON: a list of heads, or an object
    of role -> list of heads, in which "legend" may give the legend's title. A head in JSON is a string
    ("L9H6", "9.10") or a pair [9, 10]; a bare number is refused, because 9.10 would be read as 9.1.

    Raises InputError for a file of more than MAX_BYTES or MAX_HEADS, and as `_marks` does.
    """
    path = Path(path)
    text = read_text(path, MAX_BYTES)
    content = parse_json(text, str(path)) if path.suffix == ".json" else re.sub(r"#.*", "", text)
    if not isinstance(content, dict):
        content = {"Marked heads": content}
    legend = content.pop("legend", f"Marked in {path.name}")
    if not isinstance(legend, str) or not 0 < len(legend) <= MAX_NAME:
        raise InputError(
            f"{path}: 'legend' must be a text of 1 to {MAX_NAME} characters; got {shown(legend)}"
        )
    return _marks(content, str(path), legend)


def circuit_text(circuit: Circuit) -> str:
    """A circuit as the JSON of a file of marks, which `read_circuit` reads."""
    roles = {role: [str(head) for head in heads] for role, heads in circuit.roles.items()}
    return json.dumps({"legend": circuit.legend, **roles}, indent=1)


def _marks(roles: Mapping[str, object], origin: str, legend: str) -> Circuit:
    """Checks roles -> heads as a user wrote them. `origin` is the file or field an error names.

    Raises InputError for what is no head, for more than MAX_HEADS, for none, and for a head with two roles:
    one mark would hide the other.
    """
    read: dict[str, tuple[Head, ...]] = {}
    role_of: dict[Head, str] = {}
    for role, heads in roles.items():
        if not isinstance(heads, str | list | tuple):
            raise InputError(f"{origin}: {shown(role)} must be a list of heads like L9H6; got {shown(heads)}")
        if len(role) > MAX_NAME:
            raise InputError(f"{origin}: a role must have at most {MAX_NAME} characters; got {shown(role)}")
        try:
            parsed = parse_heads(heads) if isinstance(heads, str) else _unique(heads)
        except InputError as error:
            raise InputError(f"{origin}: {shown(role)}: {error}") from error
        read[role] = parsed
        for head in parsed:
            if role_of.setdefault(head, role) != role:
                both = f"{shown(role_of[head])} and {shown(role)}"
                raise InputError(f"{origin}: a head has one role; {head} is given as {both}")
    if not role_of:
        raise InputError(f"{origin} must name at least one head; got none")
    return Circuit(model="", citation=origin, legend=legend, roles=read)


def _unique(labels: Sequence[object]) -> tuple[Head, ...]:
    _check_count(len(labels))
    return tuple(dict.fromkeys(map(_head, labels)))


def _head(label: object) -> Head:
    whole = isinstance(label, list | tuple) and all(type(part) is int for part in label)
    if whole and len(label) == 2 and all(0 <= part < 10**9 for part in label):
        return Head(*label)
    if isinstance(label, str):
        return Head.parse(label)
    raise InputError(f'a head is written "L9H6", "9.6" or [9, 6]; got {shown(label)}')


def check_fits(circuit: Circuit, n_layers: int, n_heads: int) -> None:
    """Raises InputError, naming some of them, if heads of the circuit are outside a model of this size."""
    outside = [
        head for head in circuit.heads() if not (0 <= head.layer < n_layers and 0 <= head.head < n_heads)
    ]
    if outside:
        more = f" and {len(outside) - N_NAMED:,} more" if len(outside) > N_NAMED else ""
        raise InputError(
            f"marked heads must be inside the model, layers 0 to {n_layers - 1} and heads 0 to {n_heads - 1};"
            f" got {', '.join(map(str, outside[:N_NAMED]))}{more} ({circuit.legend})"
        )
