"""Which files of the checkout the device's wheel holds: the runtime, what opens sessions, and what these two import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHARED = ("__init__.py", "errors.py", "plugins.py", "py.typed")
ROOMS = ("runtime", "backends")
WORKSHOP = ("backends/torch.py",)  # opens RUNs, which stay in the workshop


class Files(BuildHookInterface):
    """Puts the files in."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Maps paths of the checkout to paths in the wheel."""
        checkout = Path(self.root).parents[1]
        package = checkout / "edgetl"
        files = [package / name for name in SHARED]
        files += [file for room in ROOMS for file in sorted((package / room).rglob("*.py"))]
        included = build_data["force_include"]
        included |= {str(file): f"edgetl/{name}" for file in files
                     if (name := file.relative_to(package).as_posix()) not in WORKSHOP}
        about = f"edgetl_runtime-{self.metadata.version}.dist-info"
        included[str(checkout / "LICENSE")] = f"{about}/licenses/LICENSE"
