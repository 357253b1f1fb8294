"""Where weights come from: converted checkpoints, and models that are read layer by layer."""
