"""deploy/ci: the workflows are YAML that names what exists, and their commands do what they say in a shell."""

from __future__ import annotations

import http.server
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from edgetl import recipe, recipe_fields, recipe_gate, recipe_report
from edgetl.cli import options

yaml = pytest.importorskip("yaml")
CI = Path(__file__).parents[2] / "deploy/ci"
GITHUB = yaml.safe_load((CI / "github-actions.yml").read_text())
GITLAB = yaml.safe_load((CI / "gitlab-ci.yml").read_text())
STEPS = {step["name"]: step for step in GITHUB["jobs"]["gate"]["steps"] if "name" in step}
STAGES = {"gate": recipe_gate.RegressionGate, "bench": recipe.Bench, "export": recipe.Export,
          "report": recipe_report.Report}

FAKE = """\
#!/bin/sh
echo "$@" >> calls
if [ "$1" = gate ] && [ "$FAKE_CODE" != 1 ]; then
  mkdir -p gate && echo "# Gate: code $FAKE_CODE" > gate/gate.md && echo "<testsuites/>" > gate/junit.xml
fi
[ "$1" != gate ] || exit "$FAKE_CODE"
"""
REAL = f'#!/bin/sh\nexec "{sys.executable}" -m edgetl "$@"\n'


def scripts():
    """Every piece of shell in both workflows."""
    yield from (step["run"] for step in STEPS.values() if "run" in step)
    for job in GITLAB.values():
        if isinstance(job, dict):
            yield from (line for part in ("before_script", "script") for line in job.get(part, ()))


def shell(tmp_path, script, *, edgetl=FAKE, **variables):
    """Runs a script as the CI does: errors end it; `edgetl` and `python` are those of this test."""
    programs = tmp_path / ".programs"
    programs.mkdir(exist_ok=True)
    for name, text in (("edgetl", edgetl), ("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {**os.environ, **{str(name): str(value) for name, value in variables.items()}, "no_proxy": "*",
                   "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(CI.parents[1]),
                   "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    return subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=240)


def read(path):
    return path.read_text() if path.exists() else ""


# ------------------------------------------------------------------------------------------------------- what they say


def test_every_command_of_edgetl_has_flags_that_exist():
    found = [shlex.split(line) for script in scripts()
             for line in re.findall(r"^\s*(edgetl \w.*?)(?: \|\| .*)?$", script.replace("\\\n", " "), re.M)]
    assert {words[1] for words in found} == set(STAGES) and len(found) == 8
    for _, verb, *words in found:
        fields = recipe.fields_of(STAGES[verb])
        known = {options.flag(name): field for name, field in fields.items() if not field.metadata["positional"]}
        assert {word for word in words if word.startswith("--")} <= set(known), verb
        required = {options.flag(name) for name, field in fields.items()
                    if field.default is recipe_fields.REQUIRED and not field.metadata["positional"]}
        assert required <= set(words)


def test_the_limits_are_values_that_the_gate_takes():
    for variables in (GITHUB["env"], GITLAB["variables"]):
        made = recipe.build(recipe_gate.RegressionGate, {
            "base": "a", "new": "b", "max_regression": variables["MAX_REGRESSION"], "budget": variables["BUDGET"]},
            where="here")
        assert recipe_gate.margin(made.max_regression) == 0.05 and recipe_gate.seconds(made.budget) == 120


def test_github_s_actions_are_of_their_newest_major_version_and_may_only_read():
    used = {step["uses"].partition("@")[0]: step["uses"].partition("@")[2] for step in GITHUB["jobs"]["gate"]["steps"]
            if "uses" in step}
    assert used == {"actions/checkout": "v7", "actions/setup-python": "v6", "actions/cache/restore": "v5",
                    "actions/cache/save": "v5", "actions/upload-artifact": "v7",
                    "benchmark-action/github-action-benchmark": "v1"}
    assert GITHUB["permissions"] == {"contents": "read"} and "pull_request_target" not in GITHUB[True]
    # What others name (branches, titles) never becomes a part of a script.
    assert not any("${{" in script for script in scripts())


def test_only_main_leaves_a_baseline_and_only_pull_requests_are_gated():
    for name, step in STEPS.items():
        if "Save" in name or "Take" in name or "history" in name:
            assert step["if"] == "github.event_name == 'push'", name
    assert STEPS["Gate"]["if"] == STEPS["Restore the baseline of the main branch"]["if"] == (
        "github.event_name == 'pull_request'")
    saved, restored = STEPS["Save the baseline"]["with"], STEPS["Restore the baseline of the main branch"]["with"]
    assert saved["path"] == restored["path"] == GITHUB["env"]["BASELINE"].split("/")[0]
    assert saved["key"].startswith(restored["restore-keys"].strip())
    assert GITLAB["gate"]["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "merge_request_event"'}]
    assert GITLAB["gate"]["allow_failure"] == {"exit_codes": [4]}


def test_results_are_kept_whatever_the_gate_says():
    kept = STEPS["Keep the results"]
    assert kept["if"] == "${{ !cancelled() }}" and kept["with"]["path"].split() == ["gate", "report"]
    for job in ("gate", "measure"):
        assert GITLAB[job]["artifacts"]["when"] == "always"
        assert GITLAB[job]["artifacts"]["reports"]["junit"].endswith("junit.xml")
    series = STEPS["Add to the series of github-action-benchmark"]["with"]
    from edgetl.bench import formats

    assert series["output-file-path"] == f"report/{formats.ACTION}" and series["tool"] == "customSmallerIsBetter"


# --------------------------------------------------------------------------------------------------------- what they do


@pytest.mark.parametrize(("code", "undecided", "ends", "told"), [
    (0, "warn", 0, ""), (3, "warn", 3, "::error title=edgetl gate::The bundle is slower"),
    (4, "warn", 0, "::warning title=edgetl gate::The machine was too noisy"),
    (4, "fail", 4, "::warning title=edgetl gate::The machine was too noisy"),
    (1, "warn", 1, "::error title=edgetl gate::The gate ended with exit code 1")])
def test_github_s_gate_ends_as_it_should(tmp_path, code, undecided, ends, told):
    (tmp_path / "baseline/bundle").mkdir(parents=True)
    done = shell(tmp_path, STEPS["Gate"]["run"], **{**GITHUB["env"], "UNDECIDED": undecided, "FAKE_CODE": code})
    assert done.returncode == ends and (told in done.stdout if told else "::" not in done.stdout), done.stderr
    assert (tmp_path / "calls").read_text() == (
        "gate baseline/bundle out/bundle --max-regression 5% --budget 120s --out gate --overwrite\n")
    assert read(tmp_path / "summary") == ("" if code == 1 else f"# Gate: code {code}\n")


def test_github_s_gate_without_a_baseline_says_so_and_passes(tmp_path):
    done = shell(tmp_path, STEPS["Gate"]["run"], **GITHUB["env"], FAKE_CODE=3)
    assert done.returncode == 0 and "::notice" in done.stdout and not (tmp_path / "calls").exists()
    assert "nothing was compared" in read(tmp_path / "summary")


def test_the_bundle_of_main_becomes_the_baseline_in_place_of_the_last(tmp_path):
    for place, text in (("out/bundle", "new"), ("baseline/bundle/old", "old")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "manifest.json").write_text(text)
    assert shell(tmp_path, STEPS["Take the bundle as the next baseline"]["run"], **GITHUB["env"]).returncode == 0
    assert [path.name for path in (tmp_path / "baseline/bundle").iterdir()] == ["manifest.json"]


class Artifacts(http.server.BaseHTTPRequestHandler):
    """GitLab's way to the artifacts of a branch: it looks at the token and sends on to a store."""

    status, asked = 200, []

    def do_GET(self):
        Artifacts.asked.append((self.path, self.headers.get("JOB-TOKEN"), self.headers.get("PRIVATE-TOKEN")))
        if self.path == "/store":
            return self.answer(200, archive())
        if self.status != 200:
            return self.answer(self.status, b"")
        return self.answer(302, b"", Location="/store")

    def answer(self, status, data, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


def archive():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("out/bundle/manifest.json", "{}")
    return target.getvalue()


@pytest.fixture
def gitlab(monkeypatch):
    monkeypatch.setattr(Artifacts, "asked", [])
    server = http.server.HTTPServer(("127.0.0.1", 0), Artifacts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield {**GITLAB["variables"], "CI_API_V4_URL": f"http://127.0.0.1:{server.server_port}/api/v4",
           "CI_PROJECT_ID": "7", "CI_DEFAULT_BRANCH": "main", "CI_JOB_TOKEN": "job", "EDGETL_READ_TOKEN": ""}
    server.shutdown()
    thread.join()
    server.server_close()


def gate_script():
    return "\n".join(GITLAB["gate"]["script"])


@pytest.mark.parametrize("code", [0, 3, 4, 1])
def test_gitlab_s_gate_takes_the_baseline_of_main_and_ends_as_the_gate_does(tmp_path, gitlab, code):
    done = shell(tmp_path, gate_script(), **gitlab, FAKE_CODE=code)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "baseline/bundle/manifest.json").is_file()
    assert Artifacts.asked == [("/api/v4/projects/7/jobs/artifacts/main/download?job=bundle", "job", None),
                               ("/store", None, None)]
    assert "gate baseline/bundle out/bundle" in (tmp_path / "calls").read_text()


def test_gitlab_s_gate_prefers_the_token_that_was_given_for_it(tmp_path, gitlab):
    assert shell(tmp_path, gate_script(), **{**gitlab, "EDGETL_READ_TOKEN": "own"}, FAKE_CODE=0).returncode == 0
    assert Artifacts.asked[0][1:] == (None, "own")


@pytest.mark.parametrize(("status", "ends", "told"), [
    (404, 0, "There is no baseline yet"), (403, 1, "GitLab answers 403. See EDGETL_READ_TOKEN")])
def test_gitlab_s_gate_tells_no_baseline_from_no_right(tmp_path, gitlab, monkeypatch, status, ends, told):
    monkeypatch.setattr(Artifacts, "status", status)
    done = shell(tmp_path, gate_script(), **gitlab, FAKE_CODE=3)
    assert done.returncode == ends and told in done.stdout and not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_measuring_and_drawing_work_with_a_bundle(tmp_path):
    """The two steps of main with the real commands: a report, its summary for the job, and a page over the history."""
    make_bundle(tmp_path / "out/bundle")
    variables = {**GITHUB["env"], "GITHUB_SHA": "ab" * 20}
    done = shell(tmp_path, STEPS["Measure"]["run"].replace("--out", "--starts 1 --rounds 1 --block 50 --out"),
                 edgetl=REAL, **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "summary").read_text().startswith("# Benchmark")
    done = shell(tmp_path, STEPS["Draw the history"]["run"], edgetl=REAL, **variables)
    assert done.returncode == 0, done.stderr
    assert "abababab" in (tmp_path / "benchmarks.html").read_text()
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"junit.xml", "github-action-benchmark.json",
                                                                       "report.csv", "report.html"}


@pytest.mark.slow
def test_a_bundle_passes_the_gate_against_itself(tmp_path):
    make_bundle(tmp_path / "out/bundle")
    shutil.copytree(tmp_path / "out/bundle", tmp_path / "baseline/bundle")
    done = shell(tmp_path, STEPS["Gate"]["run"], edgetl=REAL, **{**GITHUB["env"], "MAX_REGRESSION": "50%"})
    assert done.returncode == 0, done.stdout + done.stderr  # passed, or the machine was too noisy to tell
    assert (tmp_path / "summary").read_text().startswith("# Gate: ")
