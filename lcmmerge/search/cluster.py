"""Cells as Ray tasks: each worker holds a field of its own, one GPU each, or one CPU each where no node has a GPU.

The field is put into the object store once; on each node its tensors are views of the one copy there, and what a
worker writes is its own. A worker that dies is replaced, and its cells are drawn again by another.
Every node must have lcmmerge, of the same version, and its dependencies; the models' files need be only here.
"""

from __future__ import annotations

import io
import logging
import pickle
import socket
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from torch import Tensor, nn

from lcmmerge.draw.load import DTYPES
from lcmmerge.errors import LcmMergeError
from lcmmerge.search.drawing import Drawing, FieldDrawer, Sampled
from lcmmerge.search.field import Field
from lcmmerge.search.order import Cell

AHEAD = 3  # cells that are claimed for each worker: it need not wait while the others are told of
CONNECT = 10  # seconds
LOSSES = 4  # workers that one cell may cost


@contextmanager
def connected(address: str) -> Iterator[None]:
    """``auto``, or as ``ray start`` says. Raises LcmMergeError."""
    try:
        if address != "auto":  # Ray would wait for minutes
            host, _, port = address.rpartition("/")[2].rpartition(":")
            socket.create_connection((host, int(port)), CONNECT).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        what = str(error).strip().partition("\n")[0]
        hint = "start one with `ray start --head`, and give its address, or auto"
        raise LcmMergeError(f"--ray {address}: no Ray cluster answers ({what})", hint) from None
    try:
        yield
    finally:
        ray.shutdown()


def pick_device(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """As ``sample.load.pick_device``, of the cluster's nodes."""
    place = torch.device(device or ("cuda" if _resource("GPU") else "cpu"))
    return place, DTYPES[dtype or ("fp32" if place.type == "cpu" else "fp16")]


class Cluster:
    """Draws on the cluster; made when its first worker is ready.

    Raises LcmMergeError where workers die again and again, as they do when they have too little memory.
    """

    def __init__(self, field: Field, batch: int, device: torch.device) -> None:
        kind = "CPU" if device.type == "cpu" else "GPU"
        self._field = field
        self._options = {"num_cpus": 1, "num_gpus": int(kind == "GPU"), "max_restarts": 0}
        workers = max(1, _resource(kind))
        self._inputs = (ray.put(_packed(field)), batch, device)
        self._starting: dict[Any, Any] = {}  # the promise that it is ready → worker
        self._busy: dict[Any, tuple[Any, Drawing]] = {}  # the promise of what is drawn → worker, what it draws
        self._idle: list[Any] = []
        self._losses: Counter[Cell | None] = Counter()
        for _ in range(workers):
            self._start()
        while not self._idle:
            self._welcome(*ray.wait([*self._starting])[0])
        self.at_once = AHEAD * workers

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Sampled]:
        """In the order in which they are done."""
        left = deque(drawings)
        while left or self._busy:
            while left and self._idle:
                worker, drawing = self._idle.pop(), left.popleft()
                self._busy[worker.draw.remote(drawing)] = worker, drawing
            (promise,), _ = ray.wait([*self._busy, *self._starting])
            if promise in self._starting:
                self._welcome(promise)
                continue
            worker, drawing = self._busy.pop(promise)
            drawn = self._result(promise, worker, drawing.cell)
            if drawn is None:
                left.appendleft(drawing)
                continue
            self._idle.append(worker)
            yield drawn

    def set(self, cell: Cell) -> None:
        """Here, not on the cluster."""
        self._field.set(cell)

    def _start(self) -> None:
        worker = ray.remote(_Worker).options(**self._options).remote(*self._inputs)
        self._starting[worker.ready.remote()] = worker

    def _welcome(self, promise: Any) -> None:
        worker = self._starting.pop(promise)
        if self._result(promise, worker, None):
            self._idle.append(worker)

    def _result(self, promise: Any, worker: Any, cell: Cell | None) -> Any:
        """None where the worker is lost; another is on its way then."""
        try:
            return ray.get(promise)
        except RayTaskError as error:
            if isinstance(error.cause, LcmMergeError):
                raise error.cause from None
            raise
        except RayError as error:
            self._losses[cell] += 1
            if self._losses[cell] == LOSSES:
                what = str(error).strip().partition("\n")[0]
                hint = "see `ray logs`; where memory is short, a smaller --batch may do"
                raise LcmMergeError(f"{LOSSES} of Ray's workers died, the last of them so: {what}", hint) from None
            ray.kill(worker)  # it may be that it only cannot be reached
            self._start()
            return None


class _Worker:
    """In a process of its own, somewhere on the cluster."""

    def __init__(self, packed: _Packed, batch: int, device: torch.device) -> None:
        self._draw = FieldDrawer(packed.unpacked(device), batch)

    def ready(self) -> bool:
        return True

    def draw(self, drawing: Drawing) -> Sampled:
        return next(self._draw([drawing]))


@dataclass(frozen=True, slots=True)
class _Packed:
    """A model's modules, to be sent to other machines.

    ``rest``: a pickle in which tensors are numbers and devices are left open.

    ``arrays``: their bytes, which Ray shares between the processes of a node; ``forms``: dtype, shape, whether it is
    a module's parameter.
    """

    rest: bytes
    arrays: list[np.ndarray[Any, Any]]
    forms: list[tuple[torch.dtype, torch.Size, bool]]

    def unpacked(self, device: torch.device) -> Field:
        field: Field = _Unpickler(self, device).load()
        for part in field.parts:  # it is written to; what is shared cannot be
            part.module.data = part.module.data.clone()
        return field


def _packed(field: Field) -> _Packed:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(field)
    arrays = [tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy() for tensor in pickler.tensors]
    forms = [(tensor.dtype, tensor.shape, isinstance(tensor, nn.Parameter)) for tensor in pickler.tensors]
    return _Packed(buffer.getvalue(), arrays, forms)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # Ray's is untyped
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | str | None:
        if isinstance(value, torch.device):
            return "device"
        if not isinstance(value, Tensor):
            return None
        number = self._numbers.setdefault(id(value), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(value)
        return number


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: _Packed, device: torch.device) -> None:
        super().__init__(io.BytesIO(packed.rest))
        self._packed, self._device = packed, device
        self._tensors: dict[int, Tensor] = {}

    def persistent_load(self, number: Any) -> Any:
        if number == "device":
            return self._device
        if number not in self._tensors:
            self._tensors[number] = self._tensor(number)
        return self._tensors[number]

    def _tensor(self, number: int) -> Tensor:
        dtype, shape, is_parameter = self._packed.forms[number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is read-only
            tensor = torch.from_numpy(self._packed.arrays[number]).view(dtype).view(shape).to(self._device)
        return nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor


def _resource(kind: str) -> int:
    return int(ray.cluster_resources().get(kind, 0))
