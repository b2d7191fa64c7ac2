"""When a report was measured, and of which commit: what orders the reports of one machine into a history."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Where a CI says which commit it works on; of a pull request GitHub's is the merge that is tested.
VARIABLES = ("EDGETL_COMMIT", "GITHUB_SHA", "CI_COMMIT_SHA", "BUILDKITE_COMMIT", "CIRCLE_SHA1", "GIT_COMMIT")
FORM = re.compile(r"[0-9a-fA-F]{7,64}(-dirty)?")
PATIENCE_S = 10.0


def record(folder: Path = Path(), variables: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """`measured_at` (UTC, ISO 8601) and `commit`, for the environment of a report."""
    now = datetime.datetime.now(datetime.UTC)
    return {"measured_at": now.isoformat(timespec="seconds"), "commit": commit(folder, variables)}


def commit(folder: Path = Path(), variables: Mapping[str, str] = os.environ) -> str | None:
    """The commit that the CI names, else that of the work tree around `folder`; None where there is neither.

    One with changes that are not committed ends in `-dirty`.
    """
    named = next((variables[name] for name in VARIABLES if FORM.fullmatch(variables.get(name, ""))), None)
    return named or _of_work_tree(folder)


def _of_work_tree(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here, or a work tree on a disk that does not answer: a report does not fail for that
    found = told.stdout.strip()
    return found if told.returncode == 0 and FORM.fullmatch(found) else None
