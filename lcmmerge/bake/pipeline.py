"""Compute in parallel, finish in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")


@contextmanager
def one_thread_each() -> Iterator[Callable[[], None]]:
    """torch parallel over items, not within one, so that no result depends on the number of threads.

    Yields the workers' initializer: torch keeps the number for each thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(threads)


def in_order(
    items: Iterable[Item],
    compute: Callable[[Item], None],
    finish: Callable[[Item], None],
    *,
    workers: int,
    in_flight: int,
    initializer: Callable[[], None],
) -> None:
    """Draw ``items`` and ``finish`` them in order in this thread, ``compute`` them in ``workers`` others.

    At most ``in_flight`` items are drawn and not yet finished. The first error stops everything and is raised here,
    as is Ctrl-C.
    """
    pending: deque[tuple[Item, Future[None]]] = deque()

    def finish_first() -> None:
        item, future = pending.popleft()
        future.result()
        finish(item)

    with ThreadPoolExecutor(workers, "lcmmerge", initializer) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(compute, item)))
                while len(pending) >= in_flight or (pending and pending[0][1].done()):
                    finish_first()
            while pending:
                finish_first()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
