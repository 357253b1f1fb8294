"""Reading the next thing while the last one is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def read_ahead(read: Callable[[K], T], keys: Iterable[K]) -> Iterator[T]:
    """read(key) of every key in order, each read in a thread while the one before is used.

    Two are alive at a time, if the caller keeps none. What `read` raises is raised in its turn.
    """
    keys = iter(keys)
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = deque(pool.submit(read, key) for key in islice(keys, 1))
        while waiting:
            item = waiting.popleft().result()
            waiting.extend(pool.submit(read, key) for key in islice(keys, 1))
            yield item
            del item
