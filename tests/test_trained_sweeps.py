"""The forward sweeps on a trained model, from a file of prompts to scores, against torch."""

import json

import numpy as np
import pytest

from headjax import load_model
from headjax.analyses.attention_patterns import attention_patterns, repeated_tokens
from headjax.analyses.dynamic_scores import SCORES, dynamic_scores
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.logit_attribution import logit_attribution
from headjax.data.prompt_sets import read_prompts
from headjax.data.prompts import batch_prompts, load_tokenizer
from headjax.parameters.cache import ensure_converted
from tests.helpers import torch_oracle
from tests.helpers.dynamic_oracle import expected_scores
from tests.helpers.gradient_oracle import torch_gradient
from tests.helpers.logit_oracle import torch_parts
from tests.helpers.tolerances import assert_close

LINES = (
    ("Lily had a big red ball. She wanted to play with it. One day,", "Lily", "Tim", "Lily"),
    ("Tim was sad. He lost his toy and he had no", "friend", "mom", "Tim"),
    ("Once upon a", "time", "day", "upon"),
    ("There was a little girl. She was very", "happy", "big", "girl"),
    ("Timmy and his mom went to the park. They", "saw", "said", "park"),
)


@pytest.fixture(scope="module")
def stories(shared_data, tmp_path_factory):
    """stories260K as ours and as torch's, and the prompts above."""
    source = shared_data / "checkpoints" / "stories260K"
    directory = tmp_path_factory.mktemp("stories")
    file = directory / "stories.jsonl"
    keys = ("prompt", "answer", "distractor", "source")
    file.write_text("".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in LINES))
    ours = load_model(ensure_converted(source, directory))
    prompts = batch_prompts(load_tokenizer(source), read_prompts(file), ours.config)
    return ours, torch_oracle.load_directory(source), prompts


def test_dynamic_scores(stories):
    ours, theirs, prompts = stories
    top_k = np.full(len(LINES), 25, np.int32)
    scores = dynamic_scores(ours, prompts, top_k).scores
    expected = expected_scores(theirs, prompts, top_k)
    for kind in SCORES:
        np.testing.assert_array_equal(scores[kind], expected[kind].astype(np.float32), err_msg=str(kind))
    assert scores["context", ""].max() >= 0.4  # some head knows how these stories go on


def test_logit_attribution(stories):
    ours, theirs, prompts = stories
    parts = logit_attribution(ours, prompts, metric="logit_diff")
    expected = torch_parts(theirs, prompts, "logit_diff")
    for field in ("heads", "mlps", "embedding", "logit"):
        assert_close(getattr(parts, field), expected[field])


def test_gradient_attribution(stories):
    ours, theirs, prompts = stories
    effects = gradient_attribution(ours, prompts, metric="logprob", positions="all").effects
    assert_close(effects, torch_gradient(theirs, prompts, "logprob", "all", None))


def test_attention_patterns(stories):
    """Trained heads look back at what random ones do not: a previous-token head stands out."""
    ours, _, prompts = stories
    scores = attention_patterns(ours, repeated_tokens(ours.config, bos=1, n_prompts=8))
    assert scores.previous.max() > 0.5
    assert scores.previous.max() > 4 * np.median(scores.previous)
    on_prompts = attention_patterns(ours, prompts.tokens, prompts.mask)
    best = np.unravel_index(scores.previous.argmax(), scores.previous.shape)
    assert on_prompts.previous[best] > np.quantile(on_prompts.previous, 0.9)
