"""Hugging Face checkpoints to headjax's own: ``python -m checkpoints_convert --model NAME --out DIR``."""

from checkpoints_convert.convert import convert

__all__ = ["convert"]
