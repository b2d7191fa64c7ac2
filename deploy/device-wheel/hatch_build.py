"""Which files of the checkout a device's wheel holds: the runtime, what opens sessions, and what these two import.

TensorRT's backend, with what builds and keeps its engines, is a wheel of its own (`part = "tensorrt"`), for which most
devices have no use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHARED = ("__init__.py", "errors.py", "plugins.py", "py.typed")
ROOMS = ("runtime", "backends")
WORKSHOP = ("backends/torch.py", "backends/_torch_profile.py")  # opens RUNs, which stay in the workshop
TENSORRT = ("backends/tensorrt.py", "backends/_tensorrt_*.py", "backends/_cuda*.py")


class Files(BuildHookInterface):
    """Puts the files in."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Maps paths of the checkout to paths in the wheel."""
        checkout = Path(self.root).parents[1]
        package = checkout / "edgetl"
        tensorrt = {file for pattern in TENSORRT for file in package.glob(pattern)}
        rest = {file for room in ROOMS for file in (package / room).rglob("*.py")} - tensorrt
        files = tensorrt if self.config.get("part") == "tensorrt" else rest | {package / name for name in SHARED}
        included = build_data["force_include"]
        included |= {str(file): f"edgetl/{name}" for file in sorted(files)
                     if (name := file.relative_to(package).as_posix()) not in WORKSHOP}
        about = f"{self.metadata.core.name.replace('-', '_')}-{self.metadata.version}.dist-info"
        included[str(checkout / "LICENSE")] = f"{about}/licenses/LICENSE"
