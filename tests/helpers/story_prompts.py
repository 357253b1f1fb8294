"""Prompts that a model of stories can answer."""

PROMPTS = (
    ("Once upon a time, there was a little girl named", "Lily", "Tim"),
    ("One day, a boy named", "Tim", "Lily"),
    ('Lily said, "I want to', "play", "be"),
    ("She was very happy. Her mom", "said", "was"),
    ("They like to", "play", "day"),
    ("Tim saw a", "big", "little"),
    ("The dog was very", "happy", "big"),
)
