"""A run holds one model at a time."""

import gc
import weakref

import jax

from experiments.run import run
from headjax import load_model, study
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run, write_model
from tests.helpers.tiny_tokenizers import byte_level


def test_a_run_lets_go_of_a_model_before_it_loads_the_next(tmp_path, monkeypatch):
    """Of the model and of every array of its size; only sweeps that hold it are run."""
    config = tiny_run(tmp_path)
    write_model(tmp_path / "other", len(byte_level()), seed=1)
    byte_level().save_pretrained(tmp_path / "other")
    config = altered(
        config,
        model=(config.model, str(tmp_path / "other")),
        analyses=("logit_attribution", "gradient_attribution"),
        n_prompts=3,
    )
    load, models, held = load_model, [], []

    def watched(*arguments, **how):
        gc.collect()
        alive = [model for model in models if model() is not None]
        held.append((len(alive), sum(array.nbytes for array in jax.live_arrays())))
        model = load(*arguments, **how)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(study, "load_model", watched)
    run(config, progress=False)
    size = 4 * sum(array.size for array in jax.tree.leaves(load(tmp_path / "other")))
    (_, before), (alive, between) = held
    assert alive == 0
    assert between - before < size / 2
