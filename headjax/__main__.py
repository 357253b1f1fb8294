"""`python -m headjax`: the console script `headjax`, which comes with the experiments beside this package."""

from importlib import import_module

if __name__ == "__main__":
    import_module("experiments.cli").main()
