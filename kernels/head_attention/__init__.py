"""Causal attention that returns every head's own output."""

from ..head_attention.api import IMPLEMENTATIONS, head_attention

__all__ = ["IMPLEMENTATIONS", "head_attention"]
