"""`headjax verify MODEL`: what headjax computes for a model, against plain torch code on the same files.

Transformers runs the model with its eager attention; each head's output is read, and edited, where it enters
the output projection. Some prompts and some heads, drawn by the seed, stand for all; both models are held in
memory, in float32. Of every comparison the largest difference is shown, relative to the largest number that
torch gives; of relation scores, whose numbers are counts, the hits that rounding cannot explain.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jaxtyping import Float

from headjax import zoo
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.head_ablation import head_ablation
from headjax.analyses.logit_attribution import logit_attribution
from headjax.analyses.relation_scores import relation_scores, relation_weights
from headjax.axes import Head
from headjax.data.prompts import PromptBatch, TokenPairs
from headjax.errors import InputError
from headjax.parameters.converted import is_converted, read_provenance
from headjax.report.table import aligned
from headjax.study import Study

N_PROMPTS, N_HEADS, N_RELATIONS = 8, 8, 3
# Of the largest number: float32 through tens of layers, in two orders of summation.
ALLOWED = 2e-4


class Comparison(NamedTuple):
    """How far headjax is from torch in one thing; `difference` and `allowed` as the module says."""

    what: str
    n_numbers: int
    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        return bool(self.difference <= self.allowed)  # and NaN never does


class Modules(NamedTuple):
    """Where transformers keeps the parts of an architecture; those of a layer from the layer on.

    `before_mlp` and `after_mlp` are the norms around the MLP, `after_attention` the one that follows
    attention; None where there is none. `values` makes the values, in some architectures among others.
    """

    layers: str
    final_norm: str
    output: str
    before_mlp: str | None
    values: str
    after_attention: str | None = None
    after_mlp: str | None = None


_LLAMA = Modules(
    "model.layers", "model.norm", "self_attn.o_proj", "post_attention_layernorm", "self_attn.v_proj"
)
_AROUND = _LLAMA._replace(
    before_mlp="pre_feedforward_layernorm",
    after_attention="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
)
# transformers' model_type -> its modules.
MODULES = {
    "gpt2": Modules("transformer.h", "transformer.ln_f", "attn.c_proj", "ln_2", "attn.c_attn"),
    "gpt_neo": Modules(
        "transformer.h", "transformer.ln_f", "attn.attention.out_proj", "ln_2", "attn.attention.v_proj"
    ),
    "gptj": Modules("transformer.h", "transformer.ln_f", "attn.out_proj", "ln_1", "attn.v_proj"),
    "gpt_neox": Modules(
        *("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.dense"),
        *("post_attention_layernorm", "attention.query_key_value"),
    ),
    "phi": Modules(
        *("model.layers", "model.final_layernorm", "self_attn.dense", "input_layernorm", "self_attn.v_proj")
    ),
    "opt": Modules(
        *("model.decoder.layers", "model.decoder.final_layer_norm", "self_attn.out_proj"),
        *("final_layer_norm", "self_attn.v_proj"),
    ),
    "phi3": _LLAMA._replace(values="self_attn.qkv_proj"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _AROUND),
    **dict.fromkeys(("olmo2", "olmo3"), _AROUND._replace(before_mlp=None)),
}


class Run(NamedTuple):
    """A forward pass by torch: logits [B S V], z [L B S H K], pattern [L B H S S], what the final norm read
    at the last position [B D]."""

    logits: torch.Tensor
    z: torch.Tensor
    pattern: torch.Tensor
    final: torch.Tensor


class Theirs:
    """The model as transformers has it."""

    def __init__(self, directory: Path):
        how = {"dtype": torch.float32, "attn_implementation": "eager"}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, **how).eval()
        self.names = MODULES[self.model.config.model_type]
        self.layers = self.model.get_submodule(self.names.layers)
        self.final_norm = self.model.get_submodule(self.names.final_norm)
        self.n_heads = self.model.config.num_attention_heads

    def run(self, prompts: PromptBatch, gains: torch.Tensor | None = None) -> Run:
        """Runs it on left-padded prompts; `gains` [L B H] multiply heads' outputs at the last position."""
        z: list[torch.Tensor] = []
        final: list[torch.Tensor] = []

        def edit(layer: int) -> Callable:
            def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
                heads = inputs[0].unflatten(-1, (self.n_heads, -1))
                if gains is not None:
                    last = heads[:, -1:] * gains[layer][:, None, :, None]
                    heads = torch.cat([heads[:, :-1], last], dim=1)
                z.append(heads)
                return (heads.flatten(-2),)

            return hook

        handles = [
            block.get_submodule(self.names.output).register_forward_pre_hook(edit(layer))
            for layer, block in enumerate(self.layers)
        ]
        handles.append(
            self.final_norm.register_forward_pre_hook(lambda _, inputs: final.append(inputs[0][:, -1]))
        )
        mask = torch.tensor(np.asarray(prompts.mask)).long()
        try:
            found = self.model(
                input_ids=torch.tensor(np.asarray(prompts.tokens)).long(),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                output_attentions=True,
                use_cache=False,
            )
        finally:
            for handle in handles:
                handle.remove()
        return Run(found.logits, torch.stack(z), torch.stack(found.attentions), final[0])

    def logprob(self, prompts: PromptBatch, gains: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probability of the answers [B]."""
        logits = self.run(prompts, gains).logits[:, -1]
        return logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(prompts.answers).long()]

    def written(self, head: Head, z: torch.Tensor, of_all: torch.Tensor | None = None) -> torch.Tensor:
        """What one head's output z [B K] writes to the residual stream [B D], without the bias.

        Through the norm after attention, if there is one, at the scale that it has for all heads' outputs
        `of_all` [B H K], or at scale 1.
        """
        block = self.layers[head.layer]
        project = block.get_submodule(self.names.output)
        alone = torch.zeros(len(z), self.n_heads, z.shape[-1])
        alone[:, head.head] = z
        written = project(alone.flatten(1)) - project(torch.zeros_like(alone).flatten(1))
        if self.names.after_attention is None:
            return written
        norm = block.get_submodule(self.names.after_attention)
        scale = 1.0 if of_all is None else _scale(norm, project(of_all.flatten(1)))
        return written / scale * _gain(norm)

    def read(self, final: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """A part [B D] of the final residual through the final norm at the residual's own scale."""
        norm, part = self.final_norm, part.double()
        if isinstance(norm, torch.nn.LayerNorm):
            part = part - part.mean(-1, keepdim=True)
        return part / _scale(norm, final.double()) * _gain(norm)

    def first_mlp(self, x: torch.Tensor) -> torch.Tensor:
        """What the MLP of the first layer writes for a residual."""
        block = self.layers[0]
        if self.names.before_mlp is not None:
            x = block.get_submodule(self.names.before_mlp)(x)
        x = block.mlp(x) if hasattr(block, "mlp") else block.fc2(block.activation_fn(block.fc1(x)))
        return x if self.names.after_mlp is None else block.get_submodule(self.names.after_mlp)(x)

    def values(self, head: Head) -> torch.Tensor:
        """W_V [D K] that a query head reads, from the module that makes keys and values."""
        family, config = self.model.config.model_type, self.model.config
        weight = self.layers[head.layer].get_submodule(self.names.values).weight
        n_kv_heads = getattr(config, "num_key_value_heads", None) or self.n_heads
        if family == "gpt2":
            weight = weight.unflatten(1, (3, self.n_heads, -1))[:, 2]
        elif family == "gpt_neox":
            weight = weight.unflatten(0, (self.n_heads, 3, -1))[:, 2].permute(2, 0, 1)
        elif family == "phi3":  # the last of queries, keys and values
            weight = weight.unflatten(0, (self.n_heads + 2 * n_kv_heads, -1))[-n_kv_heads:].permute(2, 0, 1)
        else:
            weight = weight.unflatten(0, (n_kv_heads, -1)).permute(2, 0, 1)
        return weight[:, head.head // (self.n_heads // weight.shape[1])]


def _scale(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a norm divides x by."""
    if isinstance(norm, torch.nn.LayerNorm):
        return (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt()
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _gain(norm: torch.nn.Module) -> torch.Tensor:
    """What a norm multiplies by; Gemma's stores one less."""
    return norm.weight + 1 if type(norm).__name__.startswith("Gemma") else norm.weight


@torch.no_grad()
def verify(study: Study) -> list[Comparison]:
    """Compares a study's model with torch's.

    Raises InputError where its Hugging Face files are not here, or where it is not computed in float32.
    """
    if study.compute.dtype != "float32":
        raise InputError(f"a model is verified in float32; got field 'dtype' {study.compute.dtype}")
    theirs = Theirs(_hugging_face_files(study))
    prompts, heads = _some_prompts(study), _some_heads(study)
    compared = [*_forward_pass(study, theirs, prompts)]
    if study.pairs:
        compared.append(_relation_scores(study, theirs, heads))
    return [*compared, *_effects(study, theirs, prompts, heads)]


def comparison_table(compared: list[Comparison]) -> str:
    """The comparisons as text, a line each."""
    lines = [("compared", "numbers", "difference", "allowed", "")]
    for one in compared:
        verdict = "agrees" if one.agrees else "DIFFERS"
        lines.append((one.what, f"{one.n_numbers:,}", f"{one.difference:.1e}", f"{one.allowed:.1e}", verdict))
    return aligned(lines, numbers=(1, 2, 3))


def _hugging_face_files(study: Study) -> Path:
    directory = study.source.directory
    if is_converted(directory):
        directory = zoo.find_source(read_provenance(directory)["source"]).directory
    if is_converted(directory):
        raise InputError(f"{directory}: torch needs the model's Hugging Face files; this one is converted")
    return directory


def _some_prompts(study: Study) -> PromptBatch:
    """Some of the study's prompts, from the first to the last."""
    every = study.task_batch().prompts
    chosen = np.unique(np.linspace(0, len(every) - 1, N_PROMPTS).astype(int))
    return study.task_batch(tuple(every[i] for i in chosen))


def _some_heads(study: Study) -> list[Head]:
    L, H = study.config.n_layers, study.config.n_heads
    drawn = np.random.default_rng(study.seed).choice(L * H, size=min(N_HEADS, L * H), replace=False)
    return [Head(int(one) // H, int(one) % H) for one in sorted(drawn)]


def _compare(what: str, ours: np.ndarray, theirs: np.ndarray, least: float = 0.0) -> Comparison:
    """`least` is the least magnitude that the difference is relative to."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    magnitude = max(least, float(np.abs(theirs).max()))
    return Comparison(what, theirs.size, float(np.abs(ours - theirs).max() / magnitude), ALLOWED)


def _forward_pass(study: Study, theirs: Theirs, prompts: PromptBatch) -> list[Comparison]:
    """Logits, z and patterns, at the positions that are no padding."""
    ours = study.forward(prompts.tokens, mask=prompts.mask, return_z=True, return_pattern=True)
    run, real = theirs.run(prompts), np.asarray(prompts.mask)
    queries = np.broadcast_to(real[:, None], (real.shape[0], study.config.n_heads, real.shape[1]))
    return [
        _compare("logits", np.asarray(ours.logits)[real], run.logits.numpy()[real]),
        _compare("z of every head", np.asarray(ours.z)[:, real], run.z.numpy()[:, real]),
        _compare("attention patterns", np.asarray(ours.pattern)[:, queries], run.pattern.numpy()[:, queries]),
    ]


def _relation_scores(study: Study, theirs: Theirs, heads: list[Head]) -> Comparison:
    """Hits of some heads: those that torch counts in float64 with and without what rounding may do."""
    pairs, rule = study.pairs[:N_RELATIONS], study.rule
    shares = relation_scores(
        relation_weights(study.parameters), pairs, rule, vocab_size=study.vocab_size, seed=study.seed
    )
    embed = theirs.model.get_input_embeddings()
    unembed = theirs.model.get_output_embeddings().weight[: study.vocab_size].double()
    beyond = 0
    for r, one in enumerate(pairs):
        x = embed(torch.tensor(np.asarray(one.sources)).long())
        later = theirs.first_mlp(x) if rule.first_mlp else x
        for head in heads:
            values = (x if head.layer == 0 else later) @ theirs.values(head)
            logits = theirs.written(head, values).double() @ unembed.T
            hits = round(float(shares.plain[r][head]) * len(one.sources))
            least, most = _hits(logits, one, rule.k(one.relation.id))
            beyond += max(0, least - hits, hits - most)
    n_pairs = sum(len(one.sources) for one in pairs)
    return Comparison("hits of relation scores", n_pairs * len(heads), beyond, 0)


def _hits(logits: Float[torch.Tensor, "N V"], pairs: TokenPairs, k: int) -> tuple[int, int]:
    """How many targets are among the first k, at least and at most, as logits may be off by rounding."""
    own = logits.gather(1, torch.tensor(np.asarray(pairs.targets)).long()[:, None])
    near = 1e-5 * logits.abs().max()
    least = (logits > own - near).sum(1) - 1 < k  # itself is among them
    most = (logits > own + near).sum(1) < k
    return int(least.sum()), int(most.sum())


def _effects(study: Study, theirs: Theirs, prompts: PromptBatch, heads: list[Head]) -> list[Comparison]:
    """Direct logit attribution, ablation and gradient of some heads, of the answer, on every prompt."""
    at = tuple(np.array(heads).T)
    shape = (len(theirs.layers), len(prompts.tokens), theirs.n_heads)
    run = theirs.run(prompts)
    answers = torch.tensor(prompts.answers).long()
    u = theirs.model.get_output_embeddings().weight[answers].double()
    parts = [
        (theirs.read(run.final, theirs.written(head, z[:, head.head], z)) * u).sum(-1)
        for head, z in ((head, run.z[head.layer, :, -1]) for head in heads)
    ]
    with torch.enable_grad():
        gains = torch.ones(shape, requires_grad=True)
        gradient = torch.autograd.grad(theirs.logprob(prompts, gains).sum(), gains)[0]
    clean, ablated = theirs.logprob(prompts), []
    for head in heads:
        gains = torch.ones(shape)
        gains[head.layer, :, head.head] = 0
        ablated.append(theirs.logprob(prompts, gains))

    attribution = logit_attribution(study.model, prompts)
    ablation = head_ablation(study.model, prompts)
    derivative = gradient_attribution(study.model, prompts)
    largest = float(clean.abs().max())  # effects are differences of numbers of this size
    return [
        _compare("direct logit attribution", attribution.heads.transpose(1, 2, 0)[at], torch.stack(parts)),
        _compare("log-probability, clean", ablation.clean.logprob, clean),
        _compare(
            "ablation of a head",
            ablation.effect("logprob")[at],
            (clean - torch.stack(ablated)).numpy(),
            largest,
        ),
        _compare(
            "gradient of a head's gain",
            jnp.transpose(derivative.effects, (1, 2, 0))[at],
            gradient.permute(0, 2, 1).numpy()[at],
        ),
    ]
