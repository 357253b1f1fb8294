"""Shared settings and fixtures: strict numerics everywhere, shapes checked at every call."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

# Before JAX starts: eight CPU devices, so that every sharding path is real; no network, ever.
# Nearly all that tests do is to compile small programs: LLVM's optimisations would cost more than they save.
# They are on in the processes that some tests start, and in the demonstration. JAX 0.10 has two ways to write
# loops for LLVM: the older one compiles in half the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if FLAGS not in os.environ.get("XLA_FLAGS", ""):  # which names the kept programs: the workers inherit it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
# Compiled programs are kept for both processes, for those that tests start, and for the next time. Names hold
# JAX's version and all flags; code is compiled for one processor, so each machine has a folder of its own. It
# may be removed at any time.
ROOT = Path(__file__).resolve().parents[1]
programs = ROOT / ".pytest_cache" / f"programs-{platform.node()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import contextlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import jax
import jax.monitoring
import jaxtyping
import pytest
from beartype import beartype

with_axes = jaxtyping.jaxtyped


def checked(typechecker: Callable) -> Callable:
    """Jaxtyping's decorator, which looks at every call for 0.1 ms, where a signature names axes; elsewhere
    beartype's alone, which takes a microsecond."""

    def decorate(fn: Any) -> Any:
        if isinstance(fn, FunctionType) and "jaxtyping." not in repr(fn.__annotations__):
            return beartype(fn)
        return with_axes(fn, typechecker=typechecker)

    return decorate


# Every signature of ours is checked while the tests run; the packages themselves do not need beartype.
jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook(["headjax"], "beartype.beartype")

pytest.register_assert_rewrite("tests.helpers")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, or one process would be busy with the last of them alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Trained checkpoints, tokenizers and published numbers that lie beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the folder of real checkpoints and tokenizers, {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """Every compiled program holds memory maps, of which Linux gives a process 65,530: one that kept the
    programs of all files would crash."""
    yield
    jax.clear_caches()


@pytest.fixture
def count_compiles():
    """A context manager whose list grows by the name of every program that XLA compiles inside it."""
    compiled: list[str] = []

    def listener(event: str, _seconds: float, fun_name: str = "", **_kwargs) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    @contextlib.contextmanager
    def counting() -> Iterator[list[str]]:
        compiled.clear()
        jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            yield compiled
        finally:
            jax.monitoring.unregister_event_duration_listener(listener)

    return counting
