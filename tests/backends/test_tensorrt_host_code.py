"""Version compatible engines hold a runtime of their own, which TensorRT runs only where it is allowed to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up_engine
import pytest
from made_card import MadeCard
from made_up_cuda import Card, Runtime
from tiny_bundle import graph_spec, make_graph

from edgetl.backends import _tensorrt_ahead, _tensorrt_session, tensorrt
from edgetl.backends._cuda_python import CudaPython
from edgetl.backends._tensorrt_build import How
from edgetl.backends._tensorrt_session import TensorrtSession


@pytest.mark.parametrize("allowed", [True, False])
def test_only_who_is_told_so_lets_host_code_run(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    runtime = Runtime(Card())
    flavor = made_up_engine.flavor(runtime.card, "tensorrt")
    asked: list[bool] = []
    deserialize = made_up_engine.Runtime.deserialize_cuda_engine

    def noted(self: Any, plan: bytes) -> Any:
        asked.append(getattr(self, "engine_host_code_allowed", False))
        return deserialize(self, plan)

    monkeypatch.setattr(made_up_engine.Runtime, "deserialize_cuda_engine", noted)
    TensorrtSession(made_up_engine.make_plan(make_graph()), flavor, CudaPython(runtime, "13.5"), graph_spec(),
                    threads=1, cuda_graph=False, facts={}, host_code=allowed).close()
    assert asked == [allowed]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each session that is opened on a made-up card is told so."""
    MadeCard().install(monkeypatch)
    heard: list[bool] = []
    real = _tensorrt_session.TensorrtSession

    def noted(*given: Any, **options: Any) -> Any:
        heard.append(options["host_code"])
        return real(*given, **options)

    monkeypatch.setattr(_tensorrt_session, "TensorrtSession", noted)
    return heard


def opened(tmp_path: Path, **options: str) -> None:
    tensorrt.open(make_graph(), graph_spec(), threads=1, cache_dir=tmp_path / "cache", options=options).close()


def test_it_is_what_the_user_asked_for(told: list[bool], tmp_path: Path) -> None:
    opened(tmp_path)
    opened(tmp_path, version_compatible="on")
    opened(tmp_path, version_compatible="on")  # from the cache
    assert told == [False, True, True]


@pytest.mark.parametrize("compatible", [True, False])
def test_an_engine_file_is_opened_as_it_was_built(told: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  compatible: bool) -> None:
    made_up = tensorrt.build

    def build(*given: Any, progress: object, **options: Any) -> Any:
        return made_up(*given, **options)

    monkeypatch.setattr(_tensorrt_ahead, "build", build)
    _tensorrt_ahead.build_ahead(make_graph(), graph_spec(), tmp_path / "m.engine",
                                how=How(version_compatible=compatible))
    opened(tmp_path, engine=str(tmp_path / "m.engine"))
    assert told == [compatible]
