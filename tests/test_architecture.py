"""Data flows one way, and our package names get in nobody's way."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from headjax.io import read_json
from headjax.model.edits import apply_edit

ROOT = Path(__file__).resolve().parents[1]
OURS = {"kernels", "headjax", "checkpoints_convert", "experiments"}
MAY_IMPORT = {
    "kernels": set(),
    "headjax": {"headjax", "checkpoints_convert"},
    "checkpoints_convert": {"checkpoints_convert", "headjax"},
    "experiments": OURS - {"kernels"},
}


def imported_modules(file: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Kernels go by two names (headjax/kernels): they know each other by neither.
            assert node.level == 0 or file.is_relative_to(ROOT / "kernels"), f"{file}: imports are absolute"
            if node.level == 0:
                modules.add(node.module)
    return modules


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def test_every_call_of_a_test_is_checked_against_the_signature():
    """What an argument is, how many axes it has, and that axes of one name have one length."""
    with pytest.raises(BeartypeCallHintParamViolation, match=r"read_json\(\) parameter path=3"):
        read_json(3)
    z, gain = jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 1, 3))
    assert apply_edit(z, gain, z).shape == z.shape
    for wrong in (gain[0], jnp.zeros((1, 1, 5)), np.zeros(gain.shape, np.float32)):
        with pytest.raises(TypeCheckError, match=r"parameters of headjax\.model\.edits\.apply_edit"):
            apply_edit(z, wrong, z)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_flow_one_way(package: str):
    for file in files(package):
        used = {module.split(".")[0] for module in imported_modules(file)} & OURS
        assert used <= MAY_IMPORT[package], f"{file} imports {used - MAY_IMPORT[package]}"


def test_the_converter_knows_no_analysis():
    """It needs names, shapes and files of headjax, nothing that computes."""
    may = {"config", "errors", "inputs", "io", "model", "parameters", "zoo"}
    for file in files("checkpoints_convert"):
        used = {module.split(".")[1] for module in imported_modules(file) if module.startswith("headjax.")}
        assert used <= may, f"{file} imports {used - may}"


def test_figures_know_no_report_and_no_analysis():
    """They take grids and rows; what reports and analyses draw, they ask of figures."""
    for file in files("headjax"):
        if file.parent.name == "figures":
            used = {name for name in imported_modules(file) if name.startswith("headjax.")}
            assert not {name for name in used if name.split(".")[1] in ("report", "analyses")}, file


def test_no_test_imports_another():
    """What several need lies in tests/helpers."""
    for file in files("tests"):
        assert not {name for name in imported_modules(file) if name.startswith("tests.test_")}, file


def test_only_figures_imports_matplotlib():
    for package in OURS:
        for file in files(package):
            if file.parent.name != "figures":
                assert not {m for m in imported_modules(file) if m.startswith("matplotlib")}, file


def test_torch_is_only_needed_to_read_bin_files_and_in_benchmarks():
    users = [
        file.relative_to(ROOT).as_posix()
        for package in OURS
        for file in files(package)
        if {m for m in imported_modules(file) if m.split(".")[0] == "torch"}
    ]
    oracles = {"experiments/torch_model.py", "experiments/verify.py"}  # what ours is compared with
    assert set(users) <= {"checkpoints_convert/reader.py", *oracles} | {
        user for user in users if user.startswith("experiments/benchmarks/")
    }


def test_text_is_utf8_on_every_system():
    """Without `encoding` Python takes what the system happens to be set to."""
    for package in OURS:
        for file in files(package):
            for call in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(call, ast.Call):
                    assert names_encoding(call), f"{file}:{call.lineno} opens text without naming UTF-8"


def names_encoding(call: ast.Call) -> bool:
    """Whether a call opens no text, or says "utf-8" (or takes its options, as `**text`, from elsewhere)."""
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    of_path = isinstance(call.func, ast.Attribute)
    if name == "open" and not (of_path and getattr(call.func.value, "id", "") not in ("Path", "io")):
        mode = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        if mode and "b" in getattr(mode[0], "value", ""):
            return True
        options = []
    elif of_path and name in ("read_text", "write_text"):
        options = call.args[0 if name == "read_text" else 1 :][:1]
    else:
        return True
    options += [keyword.value for keyword in call.keywords if keyword.arg in ("encoding", None)]
    return any(
        getattr(option, "value", option) in ("utf-8", "utf-8-sig") or isinstance(option, ast.Name)
        for option in options
    )


# What Python has on POSIX systems alone.
POSIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios"}


def test_no_module_needs_what_only_posix_has_to_be_imported():
    """In functions it may be imported: by then Windows has got what it can have."""
    for package in OURS:
        for file in files(package):
            waiting, imported = [ast.parse(file.read_text("utf-8"))], set()
            while waiting:
                node = waiting.pop()
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module)
                elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    waiting += ast.iter_child_nodes(node)
            assert not imported & POSIX_ONLY, file


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_transformers_still_imports_beside_our_kernels_package():
    """transformers probes for a package of the same name as our `kernels`; it must not take ours for it."""
    pytest.importorskip("torch", reason="needs torch, without which transformers has no model to build")
    code = (
        "import kernels, os; assert os.path.dirname(kernels.__file__) == os.path.abspath('kernels'); "
        "assert not hasattr(kernels, '__version__'); "
        "import transformers; transformers.AutoTokenizer; transformers.AutoConfig; "
        "from transformers import LlamaForCausalLM, LlamaConfig; "
        "LlamaForCausalLM(LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, "
        "num_hidden_layers=1, num_attention_heads=2))"
    )
    result = run_python(code, ROOT)
    assert result.returncode == 0, result.stderr


def test_a_wheel_has_every_package_and_no_kernels_of_its_own(tmp_path: Path):
    """`kernels` is Hugging Face's; ours are installed as headjax.kernels, where headjax always finds them."""
    listed = configparser.ConfigParser()
    listed.read(ROOT / "setup.cfg")
    packages = set(listed["options"]["packages"].split())
    ours = {".".join(file.parent.relative_to(ROOT).parts) for package in OURS for file in files(package)}
    assert packages == {re.sub(r"^kernels", "headjax.kernels", name) for name in ours}
    from headjax import kernels

    assert Path(kernels.__path__[0]) == ROOT / "kernels"


def test_importing_the_kernels_package_is_light():
    result = run_python("import sys, kernels; assert 'jax' not in sys.modules", ROOT)
    assert result.returncode == 0, result.stderr
