"""Work on every core that this process may use, in threads.

NumPy and SciPy let go of the interpreter while they sort, add and multiply, and threads share the
scores, so this needs no second copy of anything and no way to start processes. What is computed
does not depend on the number of threads: results come in the order of the work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

# Of small pieces of work, so many per thread are handed out ahead.
AHEAD = 4

# Of the current thread: `share`, the cores that are its own, and `stop`, set where nobody waits for
# its result any more. The main thread has neither.
_here = threading.local()


class _Abandoned(BaseException):
    """Ends work whose result nobody waits for."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], most: int | None = None
) -> Iterator[Result]:
    """Apply a function to every item, several at once; results come in the order of the items.

    Items are drawn as they are needed, by the calling thread, so that making the next ones and
    working on the last ones go on side by side. Work that calls `in_order` itself gets its part of
    the cores, and with one core nothing but a loop is left.

    The first exception ends all: of an item, of the function or, as Ctrl-C, of the caller. Work
    under way then ends where it next draws an item of its own.

    Args:
        function: called in several threads at once.
        items: to work on.
        most: items drawn whose results are not yet taken. That many are held in memory.
    """
    own = getattr(_here, "share", None) or cores()
    threads = own if most is None else min(own, most)
    if threads == 1:
        for item in items:
            _end_if_abandoned()
            yield function(item)
        return
    stop = threading.Event()

    def begin() -> None:
        _here.share, _here.stop = own // threads, stop

    pool = ThreadPoolExecutor(threads, initializer=begin)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            _end_if_abandoned()
            waiting.append(pool.submit(function, item))
            del item  # it may be large, and the next one takes long
            if len(waiting) == (most or AHEAD * threads):
                yield waiting.popleft().result()
        while waiting:
            _end_if_abandoned()
            yield waiting.popleft().result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def each(
    function: Callable[[Item], object],
    items: Collection[Item],
    most: int | None = None,
    description: str = "",
    progress: bool = False,
) -> None:
    """Apply a function to every item for what it does, as `in_order`, under a progress bar.

    Args:
        function, items, most: as for `in_order`.
        description, progress: of the progress bar, shown if standard error is a terminal.
    """
    for _ in bar(in_order(function, items, most), len(items), description, progress):
        pass


def bar(items: Iterable[Item], total: int, description: str, progress: bool) -> Iterable[Item]:
    """The items under a progress bar, if it is asked for and standard error is a terminal."""
    hidden = None if progress else True
    return tqdm(items, total=total, desc=description, leave=False, disable=hidden)


def _end_if_abandoned() -> None:
    stop = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise _Abandoned
