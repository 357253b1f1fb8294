"""Relations, prompts and how words become tokens."""
