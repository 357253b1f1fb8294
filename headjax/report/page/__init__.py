"""The page of one or several runs: `data` says what is on it, `write` makes the one file of it."""
