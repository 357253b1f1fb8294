"""Circuits: published ones, those found by path patching, and how well scores predict their heads."""
