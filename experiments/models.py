"""Models that come along with the experiments: `planted`, built on the spot, and the trained ones.

setup.cfg names the two functions as entry points, so that `headjax.open("trained")` finds them where headjax
is installed; whoever imports this module has them anywhere.
"""

from functools import partial
from pathlib import Path

from experiments import planted as planting
from experiments import trained as training
from headjax import zoo


def planted(directory: Path, seed: int = 0) -> Path:
    """The demonstration checkpoint, with its relations and the record of its heads beside it."""
    return planting.build(directory / "planted", seed)


def trained(directory: Path, seed: int = 0, name: str = "trained") -> Path:
    """A small trained model; it lies in the package."""
    return training.MODELS[name]


BESIDE = {"planted": planted, **{name: partial(trained, name=name) for name in training.MODELS}}
zoo.BESIDE |= BESIDE
