"""The machine that measures: this one, or one behind a connection (`edgetl.bench.remote`)."""

from __future__ import annotations

from typing import Any, Protocol

from edgetl.bench import affinity, environment, kernel
from edgetl.bench.instruments import Instruments
from edgetl.bench.process import Process
from edgetl.runtime import processor


class Host(Protocol):
    """What a benchmark asks of the machine that measures."""

    @property
    def name(self) -> str | None:
        """What a device calls itself; None is this machine."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """See `edgetl.bench.environment.fingerprint`."""
        ...

    def missing(self, requires: tuple[str, ...]) -> tuple[str, ...]:
        """See `edgetl.runtime.processor.missing`."""
        ...

    def cores(self) -> tuple[int, ...]:
        """See `edgetl.bench.affinity.allowed`."""
        ...

    def calibrate(self) -> kernel.Block | None:
        """See `edgetl.bench.kernel.block`; None where the process that ran it is no more."""
        ...

    def instruments(self) -> Instruments:
        """What reads its sensors during a benchmark."""
        ...

    def launch(self, timeout_s: float) -> Process:
        """A fresh worker; `timeout_s` is how long it may be silent."""
        ...


class ThisMachine:
    """The one that the command runs on."""

    name: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """See `Host`."""
        return environment.fingerprint()

    def missing(self, requires: tuple[str, ...]) -> tuple[str, ...]:
        """See `Host`."""
        return processor.missing(requires)

    def cores(self) -> tuple[int, ...]:
        """See `Host`."""
        return affinity.allowed()

    def calibrate(self) -> kernel.Block | None:
        """See `Host`."""
        return kernel.block()

    def instruments(self) -> Instruments:
        """See `Host`."""
        return Instruments()

    def launch(self, timeout_s: float) -> Process:
        """See `Host`."""
        return Process(timeout_s)


HERE = ThisMachine()
