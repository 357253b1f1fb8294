"""Reading JSON, text and tables, writing files whole, and locks between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headjax.errors import InputError
from headjax.io import atomic_write, hold_lock, parse_json, read_json, read_table, read_text, remove_temporary

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON: nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": NaN}', "JSON numbers are finite; got NaN"),
        (b'{"a": -Infinity}', "JSON numbers are finite; got -Infinity"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "an object names each field once; twice: 'c'"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b'{"a": "\xe9"}', "must be UTF-8 text; byte 7 is not"),
        ("{}".encode("utf-16"), "must be UTF-8 text; byte 0 is not"),
        (b"[1, 2]", r"must hold a JSON object; got \[1, 2\]"),
        (b'"' + b"a" * 5000 + b'"', "must hold a JSON object; got '.{,200}$"),
    ],
)
def test_what_is_no_json_object_is_refused_in_one_short_line(content: bytes, message: str, tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: .*" + message) as caught:
        read_json(file)
    assert len(str(caught.value)) < len(str(file)) + 300
    assert "\n" not in str(caught.value)


def test_json_and_text_that_are_read(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(
        b'\xef\xbb\xbf{"\xc3\xa9": [1, 2.5, null], "\\ud83d\\ude00": "\\u00e9"}'
    )
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None], "😀": "é"}
    assert parse_json("[1e400]", "x") == [float("inf")]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\xc3\xa9\r\n")
    assert read_text(tmp_path / "a.txt") == "é\r\n"


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none", tmp_path / ("a" * 300), "a\0b"):
        with pytest.raises(InputError, match="cannot be read: "):
            read_json(path)
    (tmp_path / "large").write_bytes(b" " * 101)
    with pytest.raises(InputError, match="large: must have at most 100 bytes; it has more"):
        read_json(tmp_path / "large", max_bytes=100)


def test_tables(tmp_path: Path):
    file, columns = tmp_path / "a.csv", {"name": str, "n": int, "x": float}
    file.write_bytes('name,n,x\n"a,\nb",1,nan\né,-2,1e3\n'.encode())
    (first, second) = read_table(file, columns)
    assert (first[:2], second) == (["a,\nb", 1], ["é", -2, 1000.0])
    for content, message in {
        "": "the columns must be name, n, x; got ''",
        "name,x,n\n": r"the columns must be name, n, x; got \['name', 'x', 'n'\]",
        "name,n,x\na,1\n": "row 2 must fit the columns; ",
        "name,n,x\na,1,2\nb,1.5,2\n": "row 3 must fit the columns; invalid literal for int",
        "name,n,x\na,1,2,3\n": "row 2 must fit the columns; ",
        'name,n,x\n"a,1,2\n': "not valid csv: ",
        "name,n,x\n" + "a" * 200_000: "not valid csv: field larger than field limit",
    }.items():
        file.write_text(content, "utf-8")
        with pytest.raises(InputError, match=message):
            read_table(file, columns)


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path):
    file = tmp_path / "new" / ("é" * 120)  # 240 bytes: a longer name would not be one
    with atomic_write(file) as opened:
        opened.write("old")
        assert not file.exists()
    with pytest.raises(TypeError), atomic_write(file) as opened:
        opened.write(3)
    assert file.read_text("utf-8") == "old"
    assert list(file.parent.iterdir()) == [file]


def test_only_our_own_temporary_files_are_removed(tmp_path: Path):
    theirs = (
        ".scores.csv.123.tmp",
        ".headjax-notes.tmp",
        ".headjax-1-0123abcd.tmp.bak",
        "headjax-1-0123abcd.tmp",
    )
    for name in (*theirs, ".headjax-1-0123abcd.tmp"):
        (tmp_path / name).write_text("")
    remove_temporary(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(theirs)
    remove_temporary(tmp_path / "nowhere")


HOLD = """
import sys
from pathlib import Path
from headjax.io import hold_lock
with hold_lock(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.read(1)
"""


def test_a_lock_is_one_process_alone_and_ends_with_it(tmp_path: Path):
    lock = tmp_path / "lock"
    with hold_lock(lock) as held:
        assert held
        with hold_lock(lock) as again:
            assert not again
    assert not lock.exists()
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"True\n"
        with hold_lock(lock) as held:
            assert not held
        process.kill()
    assert lock.exists()  # what a killed process leaves holds nobody up
    with hold_lock(lock) as held:
        assert held
    assert not os.listdir(tmp_path)
