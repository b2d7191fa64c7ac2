"""The worker of `edgetl.bench.worker` as it runs on a device, where there is neither the data nor the parent's machine.

    {"do": "machine", "backends": [...]} -> what `edgetl.bench.environment` says, and which backends can run there
    {"do": "calibrate"}                  -> seconds of the kernel of `edgetl.bench.kernel`
    {"do": "state"}                      -> what `edgetl.bench.watch` reads
    {"do": "run", "pixels": {...}, ...}  -> answers to pixels, uint8 [n, H, W, C], that the parent prepared

besides what the worker answers anyway. Arrays travel as {"dtype": ..., "shape": [...], "base64": ...}.
"""

from __future__ import annotations

import base64
import ctypes
import dataclasses
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgetl.bench import worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class RemoteWorker(worker.Worker):
    """See the module."""

    def actions(self) -> dict[str, Callable[..., Mapping[str, Any]]]:
        """See `edgetl.bench.worker.Worker.actions`."""
        return {**super().actions(), "machine": machine, "calibrate": calibrate, "state": state, "run": self.run}

    def run(self, pixels: Mapping[str, Any], spec: Mapping[str, Any],
            preprocess: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the very session that was timed answers, by the name of the output; it normalises where it must."""
        session = self._opened()
        if not isinstance(session, worker.FromPixels):
            session = worker.FromPixels(session, worker.spec_from_json(spec), preprocess)
        (image,) = session.spec.inputs
        return {name: array_to_json(answer) for name, answer in session.run({image.name: array(pixels)}).items()}


def machine(backends: Sequence[str]) -> Mapping[str, Any]:
    """The fingerprint, features that variants may require, cores, and the named backends: usable, or why not."""
    from edgetl import plugins
    from edgetl.bench import affinity, environment
    from edgetl.runtime import processor

    found = {name: dataclasses.asdict(plugins.load("backends", name).probe()) for name in backends}
    return {"environment": environment.fingerprint(), "features": processor.features(), "cores": affinity.allowed(),
            "backends": found}


def calibrate() -> Mapping[str, Any]:
    """One block of the kernel."""
    from edgetl.bench import kernel

    return dataclasses.asdict(kernel.block())


def state() -> Mapping[str, Any]:
    """Frequency, temperature and throttling as they are now."""
    from edgetl.bench import watch

    return dataclasses.asdict(watch.read(get_throttled=watch.vcgencmd()))


def array(values: Mapping[str, Any]) -> NDArray[Any]:
    """The array that `array_to_json` wrote."""
    import numpy as np

    return np.frombuffer(base64.b64decode(values["base64"]), values["dtype"]).reshape(values["shape"])


def array_to_json(values: NDArray[Any]) -> dict[str, Any]:
    """Plain JSON values that hold an array bit for bit."""
    import numpy as np

    # Little endian on both sides, whatever they are.
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return {"dtype": plain.dtype.str, "shape": plain.shape, "base64": base64.b64encode(plain.tobytes()).decode()}


def end_with_parent() -> None:
    """Has Linux end this process when the agent is killed: a call that hangs would not notice its closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    sys.exit(worker.main(RemoteWorker))
