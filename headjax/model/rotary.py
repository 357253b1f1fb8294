"""Rotary position embedding in the variants that published models use (Su et al. 2021 and after)."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from headjax.config import LinearScaling, Llama3Scaling, Rotary, YarnScaling

Frequencies = Float[np.ndarray, " half"]


def apply_rotary(
    x: Float[Array, "B S N K"],
    positions: Int[Array, "B S"],
    frequencies: Float[Array | np.ndarray, " half"],
    amplitude: float | Float[Array, ""] = 1.0,
) -> Float[Array, "B S N K"]:
    """Rotates the pairs (i, i + half) of as many entries as there are frequencies for; the rest pass through.

    `amplitude` multiplies what is rotated (`rotary_amplitude`).
    """
    frequencies = jnp.asarray(frequencies)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if isinstance(amplitude, Array) or amplitude != 1:
        cos, sin = cos * amplitude, sin * amplitude
    half = len(frequencies)
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def rotary_amplitude(rotary: Rotary) -> float:
    """What rotated entries are multiplied by; 1 but for YaRN's attention factor."""
    return rotary.scaling.attention_factor if isinstance(rotary.scaling, YarnScaling) else 1.0


def rotary_frequencies(rotary: Rotary) -> Frequencies:
    """Angle per position of each rotated pair, in radians; float32 as every published model uses it."""
    exponents = np.arange(0, rotary.dim, 2, dtype=np.float32) / np.float32(rotary.dim)
    frequencies = 1 / np.float32(rotary.theta) ** exponents
    if isinstance(rotary.scaling, LinearScaling):
        return frequencies / np.float32(rotary.scaling.factor)
    if isinstance(rotary.scaling, Llama3Scaling):
        return _llama3(frequencies, rotary.scaling)
    if isinstance(rotary.scaling, YarnScaling):
        return _yarn(frequencies, rotary, rotary.scaling)
    return frequencies


def _llama3(frequencies: Frequencies, scaling: Llama3Scaling) -> Frequencies:
    """Grattafiori et al. 2024, section 3.1: wavelengths that the training context was too short for are
    stretched by `factor`, short ones kept, the range between interpolated."""
    wavelengths = 2 * np.pi / frequencies
    turns = scaling.original_max_positions / wavelengths
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0, 1)
    return (smooth * frequencies + (1 - smooth) * frequencies / scaling.factor).astype(np.float32)


def _yarn(frequencies: Frequencies, rotary: Rotary, scaling: YarnScaling) -> Frequencies:
    """Peng et al. 2023, section 3.2, as transformers computes it: the ramp runs over the pairs' indices."""

    def pair_that_turns(times: float) -> float:
        """The index (not whole) of the pair that turns so often within the training context."""
        wavelength = scaling.original_max_positions / (times * 2 * math.pi)
        return rotary.dim * math.log(wavelength) / (2 * math.log(rotary.theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary.dim - 1)
    width = last - first or 0.001
    slow = np.clip((np.arange(rotary.dim // 2, dtype=np.float32) - first) / width, 0, 1)
    stretched = frequencies / np.float32(scaling.factor)
    return (stretched * slow + frequencies * (1 - slow)).astype(np.float32)
