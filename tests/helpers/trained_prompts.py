"""The trained Llama of the repository, and prompts that it can answer: a Llama with grouped queries, 3 layers
of 4 heads, one token a word."""

from pathlib import Path

MODEL = str(Path(__file__).resolve().parents[2] / "experiments" / "trained" / "models" / "trained-llama")
# Text, answer, distractor.
PROMPTS = (
    ("The capital of France is", "Paris", "Madrid"),
    ("In Germany people speak", "German", "Spanish"),
    ("The first letter of moon is", "m", "h"),
    ("After the year 1912 came the year", "1913", "1985"),
    ("Say it twice: moon,", "moon", "hand"),
    ("This is Peter, please say hello to", "Peter", "Laura"),
    ("In Chile people speak", "Spanish", "German"),
)
COPYING = ("moon", "hand", "dog", "letter")  # words that are copied
