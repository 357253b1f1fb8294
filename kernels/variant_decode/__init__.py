"""One decode step of many edited variants against one shared key/value cache."""

from ..variant_decode.api import IMPLEMENTATIONS, variant_decode

__all__ = ["IMPLEMENTATIONS", "variant_decode"]
