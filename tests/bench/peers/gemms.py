"""The arithmetic of a merge alone, in memory: ``python gemms.py FOLDER`` prints its wall and CPU seconds as JSON.

For every parameter that an adapter touches: the factors of all its adapters to float32 (λ · alpha / rank into ``up``),
W to float32 in row blocks of at most 0.5 M elements, one ``addmm`` with the concatenated factors, and back to 16 bits.
One thread per core, each with torch's own threads off. Weights are random; nothing is read or written.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

BLOCK_ELEMENTS = 2**19
MEMORY_ELEMENTS = 2**26  # of weights per thread, walked through, so that they come from memory and not from a cache
RANKS = {"lcm": 64, "style": 32}


@dataclass(frozen=True, slots=True)
class Product:
    rows: int
    columns: int
    ranks: tuple[int, ...]


class Worker:
    def __init__(self) -> None:
        self.weights = torch.empty(MEMORY_ELEMENTS, dtype=torch.float16).normal_(std=0.02)
        self.position = 0
        self.block = torch.empty(BLOCK_ELEMENTS)

    def take(self, *shape: int) -> torch.Tensor:
        count = prod(shape)
        if self.position + count > MEMORY_ELEMENTS:
            self.position = 0
        self.position += count
        return self.weights[self.position - count : self.position].view(shape)

    def work_off(self, queue: deque[Product]) -> None:
        while queue:
            with suppress(IndexError):  # another worker took the last one
                self.run(queue.pop())

    def run(self, product: Product) -> None:
        rank = sum(product.ranks)
        up, down = torch.empty(product.rows, rank), torch.empty(rank, product.columns)
        column = 0
        for r in product.ranks:
            torch.mul(self.take(product.rows, r), 0.125, out=up[:, column : column + r])
            down[column : column + r] = self.take(r, product.columns)
            column += r
        weight = self.take(product.rows, product.columns)
        step = max(1, BLOCK_ELEMENTS // product.columns)
        for first in range(0, product.rows, step):
            part = weight[first : first + step]
            block = self.block[: part.numel()].view(part.shape)
            block.copy_(part)
            block.addmm_(up[first : first + step], down)
            part.copy_(block)


def main(folder: str) -> None:
    touched = json.loads((Path(folder) / "touched.json").read_text())
    products = [
        Product(
            entry["shape"][0],
            prod(entry["shape"][1:]),
            tuple(rank for name, rank in RANKS.items() if entry[name]),
        )
        for entry in touched
    ]
    torch.set_num_threads(1)
    workers = [Worker() for _ in os.sched_getaffinity(0)]
    queue = deque(sorted(products, key=lambda product: product.rows * product.columns))
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(lambda worker: worker.work_off(queue), workers))
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    sys.stdout.write(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
