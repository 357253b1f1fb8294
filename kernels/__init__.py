"""Attention and ranking kernels, one folder an op.

Stays empty: `kernels` is also the name of a Hugging Face package whose presence transformers probes,
so importing this package must cost nothing and promise nothing.
"""
