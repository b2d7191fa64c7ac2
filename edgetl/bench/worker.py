"""One case in a process of its own: `python -m edgetl.bench.worker`, JSON lines on stdin and stdout.

    {"do": "open", ...}      -> import_s, load_s, first_s, memory_loaded_bytes, session, allocator, affinity, ...
    {"do": "block", ...}     -> seconds, late_calls, memory_peak_bytes, gpu_memory_bytes
    {"do": "device", ...}    -> device_s, where "open" said `tells_device`
    {"do": "evaluate", ...}  -> n, after {"progress": images} lines
    {"do": "crowd", ...}     -> calls_per_s
    {"do": "take", ...}      -> {}; from now on the image files are known to
    {"do": "walk", ...}      -> decode_s, preprocess_s, end_to_end_s
    {"do": "profile", ...}   -> layers, layers_s, profiled_s, of a session of its own, in a process that opened none
    {"do": "scenario", ...}  -> duration_s, samples, latencies_ns, inputs
    {"do": "close"}          -> {}, and the process ends; so it does at the end of stdin

An expected failure is answered with {"error": sentence}. Anything else ends the process with its traceback on stderr,
where the parent finds it. Only the standard library is imported before "open", so that `import_s` is all that an
application pays.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from edgetl.allocator import set_allocator
from edgetl.bench import affinity
from edgetl.errors import EdgetlError
from edgetl.timing import block, crowd, timed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetl.bench.walk import Way
    from edgetl.runtime.session import GraphSpec, Session

    Feeds = Mapping[str, NDArray[Any]]

WAIT_POLICIES = {"on": "ACTIVE", "off": "PASSIVE"}  # of OpenMP, on which PyTorch's threads stand
POOL = 4  # different inputs in turn, so that no call meets exactly the data of the one before


class Worker:
    """The opened case and what can be asked of it."""

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self.tell = tell
        self.allocator = set_allocator()  # before the first tensor
        self.session: Session | None = None
        self.feeds: Sequence[Feeds] = ()
        self.way: Way | None = None

    def answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The reply to a request; an expected failure becomes its sentence."""
        try:
            return self.actions()[request["do"]](**{name: value for name, value in request.items() if name != "do"})
        except EdgetlError as problem:
            return {"error": " ".join(filter(None, (problem.message, problem.hint)))}
        except MemoryError:
            return {"error": "out of memory"}

    def actions(self) -> dict[str, Callable[..., Mapping[str, Any]]]:
        """What a request may ask to "do"."""
        return {"open": self.open, "block": self.block, "device": self.device, "evaluate": self.evaluate,
                "crowd": self.crowd, "take": self.take, "walk": self.walk, "profile": self.profile,
                "scenario": self.scenario, "close": self.close}

    def open(self, backend: str, graph: str, spec: Mapping[str, Any], threads: int, batch: int,
             pixels: Mapping[str, Any] | None = None, within: tuple[int, int] | None = None,
             pin: Sequence[int] | None = None, spin: str | None = None) -> Mapping[str, Any]:
        """Imports the library, opens the graph and runs it for the first time, each on the stopwatch.

        With `pixels`, a preprocess, whatever is asked later begins with an image's pixels and not with the graph's
        input, so that a graph which embeds the normalisation can be held against one that needs it done. `within` is
        where the graph begins in the file of a packed bundle, and its size. `pin` are the cores to run on, and `spin`
        says whether waiting threads keep them busy: libraries read both before they start their threads.
        """
        _settle(pin, spin)
        module, import_s = timed(functools.partial(_import, backend))
        from edgetl.runtime.session import cgroup_quota, open_session

        options = _options(module, spin)
        shape = spec_from_json(spec)
        data = _read(Path(graph), within)
        session, load_s = timed(functools.partial(open_session, backend, data, shape, threads=threads,
                                                    options=options))
        if pixels is not None:
            session = FromPixels(session, shape, pixels)
            shape = session.spec
        self.session = session
        del data
        loaded = peak_memory_bytes()
        self.feeds = make_feeds(shape, batch)
        _, first_s = timed(functools.partial(session.run, self.feeds[0]))
        return {"import_s": import_s, "load_s": load_s, "first_s": first_s,
                "memory_loaded_bytes": loaded, "session": dict(session.info()), "allocator": dict(self.allocator),
                "affinity": affinity.allowed(), "cpu_quota": cgroup_quota(),
                "spin_option": None if spin is None else bool(options), "tells_device": hasattr(session, "device_s")}

    def profile(self, backend: str, graph: str, spec: Mapping[str, Any], threads: int, batch: int, calls: int,
                within: tuple[int, int] | None = None, pin: Sequence[int] | None = None,
                spin: str | None = None) -> Mapping[str, Any]:
        """Seconds of each layer in so many calls with the engine's profiler on; other arguments as those of `open`."""
        _settle(pin, spin)
        options = _options(_import(backend), spin)
        from edgetl.bench import profiling

        shape = spec_from_json(spec)
        return profiling.profile(backend, _read(Path(graph), within), shape, make_feeds(shape, batch), threads=threads,
                                 calls=calls, options=options)

    def block(self, n: int, interval_s: float | None, drop: int) -> Mapping[str, Any]:
        """Times `n` calls, back to back or paced, and leaves out the first `drop`."""
        run, feeds = self._opened().run, self.feeds
        found = block(lambda call: run(feeds[call % len(feeds)]), n, dropped=drop, interval_s=interval_s)
        return {"seconds": found.seconds, "late_calls": found.late_calls, "waited_s": found.waited_s,
                "memory_peak_bytes": peak_memory_bytes(), "gpu_memory_bytes": gpu_memory_bytes()}

    def device(self, n: int, interval_s: float | None, drop: int) -> Mapping[str, Any]:
        """Seconds that the device alone took, by its own clock, in calls that arrive as those of `block`."""
        device_s, feeds = self._opened().device_s, self.feeds  # type: ignore[attr-defined]  # "open" told that it is there
        told: list[float] = []
        block(lambda call: told.append(device_s(feeds[call % len(feeds)])), n, dropped=drop, interval_s=interval_s)
        return {"device_s": told[drop:]}

    def crowd(self, threads: int, window_s: float) -> Mapping[str, Any]:
        """Calls a second that so many threads get out of the session together."""
        run, feeds = self._opened().run, self.feeds
        return {"calls_per_s": crowd(lambda thread: run(feeds[thread % len(feeds)]), threads, window_s)}

    def take(self, files: Sequence[str], preprocess: Mapping[str, Any], labels: Sequence[str], embeds: bool,
             spec: Mapping[str, Any], heads: Sequence[Mapping[str, Any]] = ()) -> Mapping[str, Any]:
        """Keeps image files, in base64, and what leads from their bytes to a label."""
        from edgetl.bench.walk import Way

        self.way = Way(self._opened(), spec_from_json(spec), preprocess, labels, files, embeds=embeds,
                       heads=heads)
        return {}

    def walk(self, interval_s: float | None) -> Mapping[str, Any]:
        """Seconds of every file that `take` keeps: decoding, preprocessing, and from the bytes to the label."""
        if self.way is None:
            raise EdgetlError("no image files were taken")
        return self.way.walk(interval_s)

    def evaluate(self, data: str, keys: str, preprocess: Mapping[str, Any], spec: Mapping[str, Any], batch: int,
                 out: str, asked: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Answers the images that the file `keys` lists and writes logits, labels and weights to `out`.

        `asked` is what a table holds of an image where that is not one class, as `edgetl.heads.Asked` has it.
        """
        import numpy as np

        from edgetl import datasets, evaluate
        from edgetl.heads import asked_of
        from edgetl.runtime.preprocess import from_dict

        opened = datasets.open_data(data, asked=asked_of(asked))
        wanted = json.loads(Path(keys).read_text())
        by_key = {item.key: item for item in opened.items}
        items = [by_key[key] for key in wanted]
        shape = spec_from_json(spec)
        predict = fixed_batch(self._opened(), shape, batch, self.tell)
        wants_pixels = isinstance(self.session, FromPixels) or shape.inputs[0].dtype == "uint8"
        found = evaluate.answers(predict, items, opened.read, from_dict(preprocess, where="preprocess"),
                                 classes=len(opened.labels), batch=batch, normalized=not wants_pixels)
        np.savez(out, logits=found.logits, labels=found.labels, weights=found.weights)
        return {"n": len(found.labels)}

    def scenario(self, **asked: Any) -> Mapping[str, Any]:
        """One of MLPerf's scenarios; see `edgetl.bench.scenarios.run`."""
        from edgetl.bench import scenarios

        return scenarios.run(self._opened(), **asked)

    def close(self) -> Mapping[str, Any]:
        """Releases the session."""
        if self.session is not None:
            self.session.close()
        self.session = None
        return {}

    def _opened(self) -> Session:
        if self.session is None:
            raise EdgetlError("the session is not open")
        return self.session


class FromPixels:
    """A session that takes pixels, uint8 [N, H, W, C], and normalises them where its graph does not."""

    def __init__(self, session: Session, spec: GraphSpec, preprocess: Mapping[str, Any]) -> None:
        from edgetl.runtime.preprocess import from_dict, normalize

        self.preprocess, self.normalize = from_dict(preprocess, where="preprocess"), normalize
        image = next(one for one in spec.inputs if one.role == "image")
        shape = ("N", *self.preprocess.size_hw, self.preprocess.channels)
        self.session, self.embeds = session, image.dtype == "uint8"
        self.spec = dataclasses.replace(spec, inputs=(dataclasses.replace(image, dtype="uint8", shape=shape),))
        self.close, self.info = session.close, session.info
        if hasattr(session, "device_s"):
            self.device_s = lambda feeds: session.device_s(self._ready(feeds))

    def run(self, feeds: Feeds) -> Mapping[str, NDArray[Any]]:
        """See `edgetl.runtime.session.Session.run`."""
        return self.session.run(self._ready(feeds))

    def _ready(self, feeds: Feeds) -> Feeds:
        """What the graph takes."""
        if self.embeds:
            return feeds
        return {name: self.normalize(pixels, self.preprocess) for name, pixels in feeds.items()}


def _settle(pin: Sequence[int] | None, spin: str | None) -> None:
    """Cores and waiting of the threads that libraries are going to start."""
    if pin is not None:
        affinity.pin(pin)
    if spin is not None:
        os.environ["OMP_WAIT_POLICY"] = WAIT_POLICIES[spin]


def _options(module: ModuleType, spin: str | None) -> dict[str, str]:
    """Options of the backend, as far as it has such."""
    return {"spin": spin} if spin is not None and "spin" in getattr(module, "OPTIONS", ()) else {}


def _read(graph: Path, within: tuple[int, int] | None) -> bytes:
    with graph.open("rb") as file:
        file.seek(within[0] if within else 0)
        return file.read(within[1] if within else -1)


def _import(backend: str) -> ModuleType:
    """The backend's module, the runtime and its library imported; its probe asks that library for its version."""
    from edgetl import plugins
    from edgetl.runtime import session

    module = plugins.load("backends", backend)
    module.probe()
    session.usable_threads()
    return module


def make_feeds(spec: GraphSpec, batch: int) -> list[Feeds]:
    """`POOL` inputs of the spec's shapes: standard normal floats, which is what normalised images are, or random bytes.

    Raises:
        EdgetlError: an input of another dtype.
    """
    import numpy as np

    generator = np.random.default_rng(0)

    def array(dtype: str, shape: tuple[int | str, ...]) -> NDArray[Any]:
        sizes = [batch if size == "N" else int(size) for size in shape]
        if dtype == "uint8":
            return generator.integers(0, 256, sizes, dtype=np.uint8)
        if dtype in ("float32", "float16"):
            return generator.standard_normal(sizes, dtype=np.float32).astype(dtype)
        raise EdgetlError(f"an input of dtype {dtype} cannot be benchmarked; expected float32, float16 or uint8")

    return [{one.name: array(one.dtype, one.shape) for one in spec.inputs} for _ in range(POOL)]


def fixed_batch(session: Session, spec: GraphSpec, batch: int,
                tell: Callable[[Mapping[str, Any]], None]) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """A function from images [n <= batch, C, H, W] to logits [n, K] that runs the very batch that was timed."""
    import numpy as np

    image = next(one.name for one in spec.inputs if one.role == "image")
    answer = next(one for one in spec.outputs if one.role in ("logits", "probabilities"))

    def predict(images: NDArray[np.float32]) -> NDArray[Any]:
        padding = np.repeat(images[-1:], batch - len(images), axis=0)
        found = session.run({image: np.concatenate([images, padding])})[answer.name][:len(images)]
        tell({"progress": len(images)})
        # The logarithm of a probability is a logit; nothing in a softmax is below the smallest float.
        return found if answer.role == "logits" else np.log(np.maximum(found, np.finfo(np.float32).tiny))

    return predict


def spec_from_json(values: Mapping[str, Any]) -> GraphSpec:
    """The spec that `dataclasses.asdict` made plain."""
    from edgetl.runtime.session import GraphSpec, TensorSpec

    inputs, outputs = (tuple(TensorSpec(**{**one, "shape": tuple(one["shape"])}) for one in values[side])
                       for side in ("inputs", "outputs"))
    return GraphSpec(inputs, outputs, values["precision"], values["extra"])


def peak_memory_bytes() -> int:
    """Greatest resident memory that this process has had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # On Linux not ru_maxrss: it survives exec and so can be the parent's peak.
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def gpu_memory_bytes() -> int | None:
    """Greatest memory that PyTorch has held on its GPUs in this process; None where it uses none, or is not there."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(int(torch.cuda.max_memory_reserved(device)) for device in range(torch.cuda.device_count()))


def _private_stdout() -> TextIO:
    """The pipe to the parent; whatever a library prints goes to stderr from now on."""
    private = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return private


def main(make: type[Worker] = Worker) -> int:
    """Answers requests until "close" or the end of stdin."""
    with _private_stdout() as pipe:
        def tell(reply: Mapping[str, Any]) -> None:
            pipe.write(json.dumps(reply) + "\n")
            pipe.flush()

        worker = make(tell)
        for line in sys.stdin:
            request = json.loads(line)
            tell(worker.answer(request))
            if request["do"] == "close":
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
