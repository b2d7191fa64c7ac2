"""A build in a thread of its own, so that Ctrl-C and a listener's exceptions stop it in order.

TensorRT calls back from C++ for each step of each phase. An exception in there, and Python may raise KeyboardInterrupt
in any line of the main thread, would end the process; so the main thread only waits and listens, and what it raises
makes the next step's answer "stop".
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


def run(module: Any, config: Any, work: Callable[[], Any], progress: Progress | None) -> Any:
    """What `work` gives, in another thread, while `progress` hears in this one how far TensorRT is.

    Args:
        module: of TensorRT.
        config: of the builder; gets the monitor.
        work: builds the engine.
        progress: called with a phase, the steps of it that are done and how many there are: once with 0 done when a
            phase begins, and with all done when it ends. Phases lie within phases.

    Raises:
        BaseException: what `progress` raised, or Ctrl-C, after the build has stopped; or what `work` raised.
    """
    told: queue.SimpleQueue[tuple[str, int, int] | None] = queue.SimpleQueue()
    stop = threading.Event()
    config.progress_monitor = monitor = _monitor(module, told.put, stop)
    result: list[Any] = []
    problems: list[BaseException] = []

    def build(used: Any) -> None:  # the monitor, which must live as long as this
        try:
            result.append(work())
        except BaseException as problem:  # noqa: BLE001  raised again by the thread that waits
            problems.append(problem)
        finally:
            told.put(None)

    # A daemon: after a second Ctrl-C nobody waits for it any more.
    threading.Thread(target=build, args=(monitor,), name="edgetl-tensorrt-build", daemon=True).start()
    _listen(told, stop, progress)
    if problems:
        raise problems[0]
    return result[0]


def _listen(told: queue.SimpleQueue[tuple[str, int, int] | None], stop: threading.Event,
            progress: Progress | None) -> None:
    try:
        while (event := told.get()) is not None:
            if progress is not None:
                progress(*event)
    except BaseException:
        stop.set()
        while told.get() is not None:
            continue
        raise


def _monitor(module: Any, tell: Callable[[tuple[str, int, int]], None], stop: threading.Event) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)  # pybind11 asks for it by name
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            tell((phase_name, 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell((phase_name, min(step + 1, self._steps.get(phase_name, 1)), self._steps.get(phase_name, 1)))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with contextlib.suppress(KeyError):
                steps = self._steps.pop(phase_name)
                tell((phase_name, steps, steps))

    return Monitor()
