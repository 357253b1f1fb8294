"""Names of the trained checkpoints."""

TRAINED = ("stories260K", "slm4096", "gpt-nano-sort")
