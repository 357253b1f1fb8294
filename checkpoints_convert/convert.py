"""From a model's name to a converted checkpoint on disk."""

import hashlib
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from checkpoints_convert.engine import open_source
from headjax import zoo
from headjax.errors import InputError, shown
from headjax.parameters.converted import Group, is_converted, write_checkpoint

DTYPES = ("float32", "bfloat16", "float16")


def convert(
    source: str | Path | zoo.Source,
    out: str | Path,
    dtype: str | None = None,
    progress: Callable[[Iterable[Group]], Iterable[Group]] | None = None,
    ignore_fields: Collection[str] = (),
) -> None:
    """Converts a model (a name of `headjax.zoo` or a Hugging Face directory) into the directory `out`.

    One layer is in memory at a time. What `out` held before stays until the new one is whole.

    Args:
      dtype: "float32", "bfloat16" or "float16"; as stored where None.
      progress: wraps the parts as they are written; None: a progress bar where there is a terminal.
      ignore_fields: of config.json, to treat as absent.

    Raises InputError for anything wrong with the source or with writing.
    """
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; got {shown(dtype)}")
    origin = zoo.find_source(source)
    if is_converted(origin.directory):
        raise InputError(f"{origin.directory}: is converted already")
    opened = open_source(origin.directory, ignore_fields)
    if dtype is not None:
        opened = opened.with_dtype(np.dtype(getattr(jnp, dtype)))
    tokenizer = [
        origin.directory / name for name in zoo.TOKENIZER_FILES if (origin.directory / name).is_file()
    ]
    files = {file.name: _describe(file) for file in (*opened.files, *tokenizer)}
    name = origin.id.encode(errors="backslashreplace").decode()  # a directory's may be no text at all
    provenance = {"source": name, "revision": origin.revision, "files": files, **opened.ignored}
    write_checkpoint(
        Path(out),
        opened.config,
        opened.dtypes,
        provenance,
        read_group=lambda group: opened.read(group.names, group.layer),
        copied_files=[origin.directory / "config.json", *tokenizer],
        progress=progress or partial(tqdm, desc=f"converting {name}", unit="part", disable=None),
    )


def _describe(file: Path) -> dict[str, Any]:
    status = file.stat()
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
