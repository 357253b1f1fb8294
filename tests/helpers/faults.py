"""The small faults that `mutate` puts into the source: where each one is and what it writes there."""

import ast
import dataclasses
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from experiments.config import SECTIONS, RunConfig
from headjax.analyses.registry import ANALYSES

SKIPPED = r"bench|torch_gpt2|/trained/"  # measured by hand, the oracle, a model's training


@dataclasses.dataclass(frozen=True)
class Fault:
    """One change: the bytes [start, end) of a file become `text`."""

    kind: str
    file: str
    line: int
    start: int
    end: int
    before: str
    text: str

    def __str__(self) -> str:
        change = " ".join(f"{self.before} -> {self.text}".split())
        return f"{self.file}:{self.line}  {self.kind}: {change[:110]}"


# --- the kinds of faults: node -> (kind, the part that is replaced, its new text) ------------------------

Change = tuple[str, ast.AST, str]
SIZES = {2**power for power in range(4, 40)}  # of tiles and batches, which change no result
COMPARE = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"},
}
EITHER_WAY = ("max", "min", "maximum", "minimum", "isdisjoint")  # the order of arguments means nothing
ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "//"}


def expression_changes(node: ast.AST) -> Iterator[Change]:
    """Faults in operators, numbers, words and tables."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            text = f"({ast.unparse(left)} {COMPARE[type(op)]} {ast.unparse(right)})"
            yield "comparison", node, text
        case ast.BoolOp(op=op, values=values):
            word = " and " if isinstance(op, ast.Or) else " or "
            yield "and / or", node, "(" + word.join(f"({ast.unparse(value)})" for value in values) + ")"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not dropped", node, f"({ast.unparse(operand)})"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "sign", node, f"({ast.unparse(operand)})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield "arithmetic", node, f"({ast.unparse(left)} {ARITHMETIC[type(op)]} {ast.unparse(right)})"
        case ast.Constant(value=bool(value)):
            yield "constant", node, str(not value)
        case ast.Constant(value=int() | float() as value) if value not in SIZES:
            yield "constant", node, str(value + 1) if isinstance(value, int) else repr(value * 1.5)
        case ast.Constant(value=str(value)) if "->" in value:
            for pattern in (r"(.*->)(\w)(\w)(\w*)", r"(\w*)(\w)(\w)(,.*->.*)"):  # result, first operand
                if found := re.fullmatch(pattern, value):
                    yield "axes swapped", node, repr("{0}{2}{1}{3}".format(*found.groups()))
        case ast.Tuple(elts=[_, _, _, *_] as entries) | ast.List(elts=[_, _, _, *_] as entries):
            if isinstance(node.ctx, ast.Load) and not any(isinstance(e, ast.Slice) for e in entries):
                brackets = "[]" if isinstance(node, ast.List) else "()"
                kept = "".join(f"{ast.unparse(entry)}, " for entry in entries[:-1])
                yield "entry dropped", node, f"{brackets[0]}{kept}{brackets[1]}"
        case ast.Dict(keys=[_, _, *_], values=values):
            entries = zip(node.keys, [*values[1:], values[0]], strict=True)
            if all(node.keys):
                text = ", ".join(f"{ast.unparse(key)}: {ast.unparse(value)}" for key, value in entries)
                yield "entries shifted", node, f"{{{text}}}"
        case ast.IfExp(test=test):
            yield "condition", test, f"(not ({ast.unparse(test)}))"


def swappable(call: ast.Call) -> bool:
    """Whether a caller could mistake the first two arguments for each other."""
    first, second = call.args[:2]
    alike = type(first) is type(second) and not isinstance(first, ast.Starred | ast.Lambda)
    return alike and ast.unparse(call.func).split(".")[-1] not in EITHER_WAY


def call_changes(node: ast.AST, defaults: dict[str, str]) -> Iterator[Change]:
    """Faults in calls, checks and fields."""
    match node:
        case ast.Call(args=[ast.AST() as first, ast.AST() as second, *_]) if swappable(node):
            call = ast.Call(node.func, [second, first, *node.args[2:]], node.keywords)
            yield "arguments swapped", node, ast.unparse(call)
        case ast.Call(keywords=[_, *_] as keywords):
            for gone in keywords:
                rest = [keyword for keyword in keywords if keyword is not gone]
                yield "argument dropped", node, ast.unparse(ast.Call(node.func, node.args, rest))
        case ast.If(test=test, body=[ast.Raise(), *_]):
            yield "check skipped", test, "False"
        case ast.If(test=test):
            yield "condition", test, f"(not ({ast.unparse(test)}))"
        case ast.Attribute(value=base, attr=field, ctx=ast.Load()) if field in defaults:
            if re.fullmatch(r"((self|study|config)\.)?(data|compute|report)|config|self", ast.unparse(base)):
                yield "field ignored", node, defaults[field]


def table_changes(node: ast.AST) -> Iterator[Change]:
    """Faults in numbers that stand in the words of a table, like `9.6`."""
    match node:
        case ast.Constant(value=str(value)):
            for found in re.finditer(r"\d\b", value):
                digit = str((int(found[0]) + 1) % 10)
                yield "number in words", node, repr(value[: found.start()] + digit + value[found.end() :])


@cache
def option_defaults() -> dict[str, str]:
    """The fields of runs, data, devices, reports and analyses that have a default, with its value as text."""
    parts = (RunConfig, *SECTIONS.values(), *ANALYSES.values())
    fields = [field for part in parts for field in dataclasses.fields(part)]
    known = [
        field for field in fields if field.default is not dataclasses.MISSING and field.name != "analyses"
    ]
    return {field.name: repr(field.default) for field in known}


def python_faults(file: str, source: bytes) -> Iterator[Fault]:
    """Every fault of a module; not in annotations, messages, docstrings or f-strings."""
    starts = [0, *(i + 1 for i, byte in enumerate(source) if byte == ord("\n"))]
    module = ast.parse(source)
    tables = {id(node.value) for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign)}
    stack: list[tuple[ast.AST, str]] = [(module, "")]  # with the place: a table, a default, or neither
    while stack:
        node, place = stack.pop()
        place = "table's " if id(node) in tables else place
        quiet = isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert)
        quiet |= isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)  # 2**20, a size
        if quiet or (isinstance(node, ast.Subscript) and "Array" in ast.unparse(node.value)):
            continue
        table = table_changes(node) if place == "table's " else ()
        for kind, part, text in (*expression_changes(node), *call_changes(node, option_defaults()), *table):
            kind = place + kind if kind == "constant" else kind
            start = starts[part.lineno - 1] + part.col_offset
            end = starts[part.end_lineno - 1] + part.end_col_offset
            yield Fault(kind, file, part.lineno, start, end, source[start:end].decode(), text)
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                default = name in ("defaults", "kw_defaults") or (
                    isinstance(node, ast.AnnAssign) and not place
                )
                inner = "default " if default else place
                parts = value if isinstance(value, list) else [value]
                stack += [(part, inner) for part in parts if isinstance(part, ast.AST)]


def data_faults(file: str, source: bytes) -> Iterator[Fault]:
    """Every number of a table changed in its last digit, and the words of every pair swapped."""
    begin = 0
    for number, line in enumerate(source.splitlines(keepends=True), start=1):
        found = [] if line.startswith(b"#") else [*data_changes(line)]
        for kind, match, changed in found:
            span = (begin + match.start(), begin + match.end())
            yield Fault(kind, file, number, *span, match[0].decode(), changed.decode())
        begin += len(line)


def data_changes(line: bytes) -> Iterator[tuple[str, re.Match[bytes], bytes]]:
    """Faults in a line of data: kind, the part that is replaced, its new text."""
    for match in re.finditer(rb"(?<![\w.-])-?\d+(\.\d+)?(?![\w.])|-?\d\.?\d*(?=e-)", line):
        yield "published number", match, match[0][:-1] + b"%d" % ((match[0][-1] - 47) % 10)
    for match in re.finditer(rb'\["([^"]+)", "([^"]+)"\]', line):
        yield "words swapped", match, b'["%s", "%s"]' % (match[2], match[1])


def draw_faults(root: Path, patterns: Sequence[str], n: int, seed: int) -> list[Fault]:
    """n faults of the files that match, every kind about as often as the others."""
    kinds: dict[str, list[Fault]] = defaultdict(list)
    readers: dict[str, Callable] = {".py": python_faults, ".csv": data_faults, ".json": data_faults}
    for path in sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()}):
        file = path.relative_to(root).as_posix()
        if path.suffix in readers and not re.search(SKIPPED, file):
            for fault in readers[path.suffix](file, path.read_bytes()):
                if fault.before != fault.text:
                    kinds[fault.kind].append(fault)
    rng = random.Random(seed)
    for kind in kinds:
        rng.shuffle(kinds[kind])
    rounds = [fault for i in range(n) for faults in kinds.values() for fault in faults[i : i + 1]]
    return rng.sample(rounds[: max(n, len(kinds))], min(n, len(rounds)))
