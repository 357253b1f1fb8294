"""A run that is killed after some units."""

import contextlib
from collections.abc import Iterator

import pytest

from experiments.units import Units


class Killed(Exception):
    pass


@contextlib.contextmanager
def killed_after(n_units: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the run inside once it has stored so many units."""
    store, stored = Units._store, []

    def count(self: Units, name: str, content: bytes) -> None:
        if len(stored) == n_units:
            raise Killed
        stored.append(name)
        store(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Units, "_store", count)
        with pytest.raises(Killed):
            yield
