"""Trains a small model on text made from the relation files, and writes it in Hugging Face format.

    python -m experiments.trained.train --family=gpt2 --out=out/trained-gpt2

About 15 minutes on two cores that have nothing else to do. Needs optax (`pip install -e '.[train]'`).
Beside the model it writes training.json (settings, versions, digest of the text, accuracies of the weights
as stored) and training_log.csv. The same settings give the same text, and the same model but for rounding.
"""

import csv
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from jax import Array
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerFast

from experiments.planted.words import BOS, UNKNOWN, make_tokenizer
from experiments.stages import versions
from experiments.trained.export import free_parameters, read_fields, write_model
from experiments.trained.questions import accuracies, make_questions
from experiments.trained.settings import PRESETS, Settings, config_fields
from experiments.trained.text import Writer
from experiments.trained.words import make_vocabulary, taught_pairs
from headjax.errors import InputError, run_main
from headjax.model import Transformer, build_model, model_parameters, parameter_shapes

Weights = Mapping[str, Array]


def train(settings: Settings, out: Path, report: Callable[[dict], None] = print) -> None:
    """Trains a model and writes it, with its log, into a directory; `report` gets every line of the log."""
    start = time.perf_counter()
    vocabulary = make_vocabulary(settings.n_pairs)
    pairs = taught_pairs(vocabulary)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(vocabulary), bos_token=BOS, eos_token=BOS, unk_token=UNKNOWN
    )
    writer = Writer(vocabulary, pairs, tokenizer, settings.seed)
    questions = make_questions(vocabulary, pairs, tokenizer)
    fields = config_fields(settings, len(vocabulary))
    log, losses, digest = [], [], None
    for number, tokens, loss, model in learn(settings, fields, writer):
        digest = digest or text_digest(tokens)
        losses.append(loss)
        if number % settings.log_every == 0 or number == settings.steps:
            log.append({"step": number, "loss": round(float(np.mean(losses)), 4)})
            log[-1] |= accuracies(model(), questions) | {"seconds": round(time.perf_counter() - start)}
            report(log[-1])
            losses = []

    stored = {name: np.asarray(values, np.float16) for name, values in model_parameters(model()).items()}
    write_model(out, fields, stored, tokenizer.backend_tokenizer)
    with open(out / "training_log.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, log[0], lineterminator="\n")
        table.writeheader()
        table.writerows(log)
    rounded = {name: jnp.asarray(values, jnp.float32) for name, values in stored.items()}
    about = {
        "settings": dataclasses.asdict(settings),
        "first_batch_sha256": digest,
        "accuracies": accuracies(build_model(read_fields(fields)[0], rounded), questions),
        "seconds": round(time.perf_counter() - start),
        "versions": {**versions(), "optax": optax.__version__},
    }
    (out / "training.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def learn(
    settings: Settings, fields: Mapping[str, object], writer: Writer
) -> Iterator[tuple[int, Int[np.ndarray, "B S"], Float[Array, ""], Callable[[], Transformer]]]:
    """Step by step: its number, its text, its loss before the step, and the model after it."""
    config, rules = read_fields(fields)
    copies = free_parameters(rules)
    zeros = {name: shape for name, shape in parameter_shapes(config).items() if name not in copies}

    def assemble(weights: Weights) -> Transformer:
        filled = {name: weights[original] for name, original in copies.items()}
        return build_model(config, filled | {name: jnp.zeros(shape) for name, shape in zeros.items()})

    def loss_of(weights: Weights, tokens: Int[Array, "B S"]) -> Float[Array, ""]:
        logits = assemble(weights)(tokens[:, :-1]).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    optimizer = make_optimizer(settings)

    @jax.jit
    def step(weights: Weights, state: optax.OptState, tokens: Int[Array, "B S"]):
        loss, gradients = jax.value_and_grad(loss_of)(weights, tokens)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    initial = model_parameters(Transformer(config, rngs=nnx.Rngs(settings.seed)))
    weights = {name: initial[name] for name in copies.values()}
    state = optimizer.init(weights)
    for number in range(1, settings.steps + 1):
        tokens = writer.rows(settings.batch_size, settings.length)
        weights, state, loss = step(weights, state, tokens)
        yield number, tokens, loss, lambda: assemble(weights)  # noqa: B023


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW, warmed up, then down along a cosine to a twentieth; matrices decay, norms and biases do not."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup, settings.steps, settings.learning_rate / 20
    )

    def matrices(weights: Weights) -> dict[str, bool]:
        return {name: name.rpartition(".")[2].startswith(("W_", "rows")) for name in weights}

    adam = optax.adamw(schedule, b2=0.98, weight_decay=settings.weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def text_digest(tokens: Int[np.ndarray, "B S"]) -> str:
    """SHA-256 of a batch of text."""
    return hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()


FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "Directory of the model, out/trained-FAMILY unless given.")
_DEFINE = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
for _field in dataclasses.fields(Settings):
    _DEFINE[_field.type](_field.name, None, "See Settings; the family's own unless given.")


def main(argv: Sequence[str]) -> None:
    family = FLAGS.family or "gpt2"
    if family not in PRESETS or len(argv) > 1:
        raise InputError(f"--family must be one of {', '.join(PRESETS)}; got {' '.join([family, *argv[1:]])}")
    given = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(PRESETS[family], **given)
    out = Path(FLAGS.out or f"out/trained-{family}")
    train(settings, out, lambda row: print(json.dumps(row), flush=True))


if __name__ == "__main__":
    run_main(main)
