"""A CUDA runtime without a card, as `cuda.bindings.runtime` has it: device memory is the host's, nothing is done early.

Whatever is queued on a stream is done when the stream is waited for and not a moment before, copies too. What would be
undefined behaviour on a card (memory used after it was given back, two streams in one workspace, a stream used by two
threads at once) is an error of the call and stands in `Card.violations`, which a test expects to be empty. Time passes
by what is done: `COPY_S` a copy, and what the work says.
"""

from __future__ import annotations

import enum
import threading
import time
from dataclasses import dataclass, field

import numpy as np

COPY_S = 0.5
PAUSE_S = 1e-4  # of the clock on the wall
GARBAGE, FREED = 0xCB, 0xDD
FIRST_ADDRESS = 0x7000_0000_0000


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


OK = Error.cudaSuccess


class Attribute(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Mode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Block:
    """Memory of the card or, page-locked, of the host."""

    address: int
    array: np.ndarray
    alive: bool = True


@dataclass(eq=False)
class Stream:
    number: int
    queue: list = field(default_factory=list)
    recording: list | None = None
    recorder: int | None = None  # the thread that records
    user: int | None = None  # the thread whose work is queued
    alive: bool = True

    def __int__(self):
        return self.number


@dataclass(eq=False)
class Event:
    at_s: float | None = None
    alive: bool = True


@dataclass(eq=False)
class Graph:
    work: list
    alive: bool = True

    def __int__(self):
        return id(self)


@dataclass
class Properties:
    name: bytes


@dataclass
class Op:
    """Something queued: what it does, how long the card takes, and the memory that it touches."""

    work: object
    seconds: float
    touches: tuple[int, ...]
    scratch: int | None = None  # memory that nobody else may use meanwhile


class Card:
    """What the made-up runtime runs on.

    Args:
        capacity: bytes of its memory.
        driver: the CUDA its driver supports, 13000; 0 is no driver.
        cards: how many there are.
    """

    def __init__(self, capacity=2**30, driver=13000, cards=1):
        self.capacity, self.driver, self.cards = capacity, driver, cards
        self.device, self.host, self.streams = {}, {}, {}
        self.graphs, self.events = [], []
        self.violations = []
        self.clock_s = 0.0
        self.launches = 0  # of CUDA graphs
        self.lock = threading.RLock()
        self.next = FIRST_ADDRESS

    @property
    def used(self):
        return sum(len(block.array) for block in self.device.values() if block.alive)

    def left(self):
        """Everything that was taken and not given back, in words."""
        return [*(f"{len(block.array)} bytes of the card" for block in self.device.values() if block.alive),
                *(f"{len(block.array)} bytes of the host" for block in self.host.values() if block.alive),
                *(f"stream {stream.number}" for stream in self.streams.values() if stream.alive),
                *("a graph" for graph in self.graphs if graph.alive),
                *("an event" for event in self.events if event.alive)]

    def violation(self, what):
        self.violations.append(what)
        return Error.cudaErrorIllegalAddress

    def block(self, address):
        """The memory at an address, alive or not; None where there never was any."""
        return self.device.get(address) or self.host.get(address)

    def push(self, number, op):
        """Queues on a stream, or records where it is being recorded."""
        with self.lock:
            stream = self.streams.get(number)
            if stream is None or not stream.alive:
                return self.violation(f"work for stream {number}, which is gone")
            me = threading.get_ident()
            if stream.recording is not None:
                if stream.recorder != me:
                    return self.violation("a recording stream was used by another thread")
                stream.recording.append(op)
                return OK
            if stream.queue and stream.user != me:
                return self.violation("two threads use one stream at once")
            stream.user = me
            if op.scratch is not None and any(
                    other.scratch == op.scratch for one in self.streams.values() if one is not stream
                    for other in one.queue):
                return self.violation("two streams use one workspace at once")
            stream.queue.append(op)
            return OK

    def finish(self, stream):
        """Does what is queued; not at once, so that other threads come in meanwhile."""
        time.sleep(PAUSE_S)
        while True:
            with self.lock:
                if not stream.queue:
                    return OK
                op = stream.queue[0]
                gone = [hex(one) for one in op.touches if (block := self.block(one)) is None or not block.alive]
                if gone:
                    stream.queue.clear()
                    return self.violation(f"memory at {gone} was used after it was given back")
            op.work()  # outside of the lock, as streams run beside one another
            with self.lock:
                stream.queue.pop(0)
                self.clock_s += op.seconds

    def free(self, blocks, address):
        with self.lock:
            block = blocks.get(address)
            if block is None or not block.alive:
                return self.violation(f"memory at {address:#x} was given back twice")
            pending = any(address in op.touches for stream in self.streams.values() for op in stream.queue)
            block.alive = False
            block.array[:] = FREED
            return self.violation(f"memory at {address:#x} was given back while in use") if pending else OK


class Runtime:
    """The functions of `cuda.bindings.runtime` that edgetl calls, over a made-up card.

    `fail` maps the name of a function to the error that its next call gives.
    """

    cudaError_t = Error
    cudaDeviceAttr = Attribute
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = Mode
    cudaStreamNonBlocking = 1
    cudaHostAllocPortable = 1

    def __init__(self, card=None):
        self.card = card or Card()
        self.current = threading.local()
        self.fail = {}
        self.calls = []

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found
        fail, calls = self.fail, self.calls

        def counted(*arguments):
            calls.append(name)
            if name in fail:
                if name == "cudaStreamEndCapture":
                    found(*arguments)  # a recording has ended also where it was spoilt
                return fail.pop(name), None
            return found(*arguments)
        return counted

    def cudaGetErrorString(self, error):
        return OK, Error(error).name.removeprefix("cudaError").encode()

    def cudaGetLastError(self):
        return (OK,)

    def cudaDriverGetVersion(self):
        return OK, self.card.driver

    def cudaRuntimeGetVersion(self):
        return OK, 13020

    def cudaGetDeviceCount(self):
        if self.card.driver < 13000:
            return Error.cudaErrorInsufficientDriver, None
        return (OK, self.card.cards) if self.card.cards else (Error.cudaErrorNoDevice, None)

    def cudaGetDevice(self):
        return OK, getattr(self.current, "card", 0)

    def cudaSetDevice(self, index):
        self.current.card = index
        return (OK,)

    def cudaGetDeviceProperties(self, index):
        return OK, Properties(b"Made-up 4090".ljust(64, b"\0"))

    def cudaDeviceGetAttribute(self, attribute, index):
        return OK, {Attribute.cudaDevAttrComputeCapabilityMajor: 8, Attribute.cudaDevAttrComputeCapabilityMinor: 9}[
            attribute]

    def cudaMemGetInfo(self):
        return OK, self.card.capacity - self.card.used, self.card.capacity

    def _recording_here(self):
        return any(stream.recorder == threading.get_ident() for stream in self.card.streams.values())

    def cudaMalloc(self, size):
        card = self.card
        with card.lock:
            if self._recording_here():
                return Error.cudaErrorStreamCaptureUnsupported, None
            if card.used + size > card.capacity:
                return Error.cudaErrorMemoryAllocation, None
            address = card.next
            card.next += -(-size // 512) * 512 + 4096
            card.device[address] = Block(address, np.full(size, GARBAGE, np.uint8))
            return OK, address

    def cudaFree(self, address):
        return (self.card.free(self.card.device, address),)

    def cudaHostAlloc(self, size, flags):
        array = np.full(size, GARBAGE, np.uint8)
        address = array.ctypes.data
        with self.card.lock:
            # What was given back is never handed out again: an old view of it must be seen to be one.
            self.card.host[address] = Block(address, array)
        return OK, address

    def cudaFreeHost(self, address):
        return (self.card.free(self.card.host, address),)

    def cudaStreamCreateWithFlags(self, flags):
        with self.card.lock:
            stream = Stream(len(self.card.streams) + 11)
            self.card.streams[stream.number] = stream
        return OK, stream

    def cudaStreamDestroy(self, stream):
        if stream.queue or not stream.alive:
            return (self.card.violation("a stream was given back with work in it, or twice"),)
        stream.alive = False
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if stream.recording is not None:
            return (Error.cudaErrorStreamCaptureUnsupported,)
        return (self.card.finish(stream),)

    def cudaMemcpyAsync(self, into, source, size, kind, stream):
        card = self.card
        ends = (card.device, card.host) if kind == Kind.cudaMemcpyHostToDevice else (card.host, card.device)
        found = [side.get(address) for side, address in zip(ends, (into, source), strict=True)]
        if None in found or any(size > len(block.array) for block in found):
            return (Error.cudaErrorInvalidValue,)

        def copy():
            found[0].array[:size] = found[1].array[:size]
        return (card.push(stream.number, Op(copy, COPY_S, (into, source))),)

    def cudaEventCreate(self):
        event = Event()
        self.card.events.append(event)
        return OK, event

    def cudaEventRecord(self, event, stream):
        def reached():
            event.at_s = self.card.clock_s
        return (self.card.push(stream.number, Op(reached, 0.0, ())),)

    def cudaEventElapsedTime(self, start, end):
        if start.at_s is None or end.at_s is None:
            return Error.cudaErrorNotReady, None
        return OK, 1e3 * (end.at_s - start.at_s)

    def cudaEventDestroy(self, event):
        event.alive = False
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode is Mode.cudaStreamCaptureModeThreadLocal
        stream.recording, stream.recorder = [], threading.get_ident()
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        work, stream.recording, stream.recorder = stream.recording, None, None
        graph = Graph(work)
        self.card.graphs.append(graph)
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):
        ready = Graph(list(graph.work))
        self.card.graphs.append(ready)
        return OK, ready

    def cudaGraphDestroy(self, graph):
        graph.alive = False
        return (OK,)

    def cudaGraphExecDestroy(self, graph):
        graph.alive = False
        return (OK,)

    def cudaGraphLaunch(self, graph, stream):
        if not graph.alive:
            return (self.card.violation("a graph was launched after it was given back"),)
        self.card.launches += 1
        for op in graph.work:
            error = self.card.push(stream.number, op)
            if error:
                return (error,)
        return (OK,)
