"""Notebooks of the documentation: executed, and what they say as text.

    python -m tests.helpers.notebooks

executes them again and saves them with their outputs.
"""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = r"-?\d+\.\d+"


def execute(notebook: Any) -> Any:
    """Runs a notebook (nbformat's) in a process of its own, on one device; outputs are in it afterwards."""
    from nbclient import NotebookClient

    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if "outputs" in cell:  # warnings are this machine's, with its paths
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def said(notebook: Any) -> list[tuple[str, list[float]]]:
    """What every cell said as text, and the numbers with a point in it, which have a place there."""
    found = []
    for cell in notebook.cells:
        outputs = [one for one in cell.get("outputs", ()) if "image/png" not in one.get("data", {})]
        text = "".join(one.get("text") or one["data"]["text/plain"] for one in outputs)
        found.append((re.sub(NUMBER, "#", text), [float(number) for number in re.findall(NUMBER, text)]))
    return found


def main() -> None:
    import nbformat

    for path in NOTEBOOKS:
        nbformat.write(execute(nbformat.read(path, as_version=4)), path)
        print(path)


if __name__ == "__main__":
    main()
