"""deploy/examples/service.py: the real application, called in this process and once through a real server."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tiny_bundle import edit_manifest, encode, make_bundle, make_photo

from edgetl.errors import BackendUnavailable, Overloaded
from edgetl.runtime import load

pytest.importorskip("fastapi", reason='the extra "serve" is not installed')
from fastapi.testclient import TestClient

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
PHOTO = encode(make_photo(2))


@pytest.fixture
def service(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import service

    return service


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def app(service, bundle):
    limits = service.Limits(body_bytes=50_000, megapixels=0.01, at_once=4)
    return service.create_app(*service.open_classifier(str(bundle), limits, threads=1), limits)


@pytest.fixture
def client(app):
    with TestClient(app) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(bundle):
    with load(bundle, threads=1) as classifier:
        return classifier.predict(PHOTO)


def test_the_body_itself_and_a_form_give_what_predict_gives(client, expected):
    raw = client.post("/predict?top=2", content=PHOTO, headers={"Content-Type": "image/png"})
    assert raw.status_code == 200
    assert raw.json()["label"] == expected.label
    assert raw.json()["score"] == pytest.approx(expected.score)
    assert len(raw.json()["top"]) == 2
    form = client.post("/predict?top=2", files={"image": ("x.png", PHOTO)}, data={"note": "kitchen"})
    assert form.json() == raw.json()


def test_health_readiness_and_info(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/info").json()["name"] == "tiny"
    assert client.get("/predict").status_code == 405


def broken(*arguments, **options):
    raise BackendUnavailable("The device has gone.", hint="Plug it in.")


def test_not_ready_when_the_model_does_not_answer(client, app, monkeypatch):
    monkeypatch.setattr(app.state.classifier, "warmup", broken)
    told = client.get("/readyz")
    assert (told.status_code, told.json()) == (503, {"error": "The device has gone.", "hint": "Plug it in."})
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "path, body, code, says",
    [
        ("/predict", b"", 422, "it is empty"),
        ("/predict", b"text", 422, "is not an image"),
        ("/predict", PHOTO[:200], 422, "cannot be read as an image"),
        ("/predict?top=0", PHOTO, 400, "'top' is '0'"),
        ("/predict?top=many", PHOTO, 400, "'top' is 'many'"),
        ("/predict", b"x" * 50_001, 413, "larger than the limit of 50000 bytes"),
        ("/predict", encode(make_photo(1, 101, 100)), 422, "100 x 101 pixels, above the limit of 0.01 megapixels"),
        ("/nowhere", PHOTO, 404, "Not Found"),
    ],
)
def test_what_cannot_be_used_is_said(client, path, body, code, says):
    told = client.post(path, content=body)
    assert told.status_code == code
    assert set(told.json()) == {"error", "hint"}
    assert says in told.json()["error"]
    assert client.post("/predict", content=PHOTO).status_code == 200


def test_a_form_without_one_file_is_refused(client):
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    empty = client.post("/predict", content=b"--x--\r\n", headers=boundary)
    assert (empty.status_code, empty.json()["error"]) == (400, "The form has no file; expected one image.")
    torn = client.post("/predict", content=b"--y\r\nnonsense", headers=boundary)
    assert torn.status_code == 400
    assert torn.json()["error"]
    two = client.post("/predict", files=[("a", PHOTO), ("b", PHOTO)])
    assert two.status_code == 400


def test_a_body_of_undeclared_length_is_given_up_at_the_limit(client):
    sent = []

    def parts():
        for number in range(100):
            sent.append(number)
            yield b"x" * 10_000

    assert client.post("/predict", content=parts()).status_code == 413


def test_a_failing_model_is_503_and_a_lost_client_no_traceback(client, app, service, monkeypatch):
    monkeypatch.setattr(app.state.classifier, "predict_async", broken)
    told = client.post("/predict", content=PHOTO)
    assert (told.status_code, told.json()["hint"]) == (503, "Plug it in.")
    begun = {"type": "http.request", "body": b"x", "more_body": True}
    sent = asyncio.run(call(app, [begun, {"type": "http.disconnect"}]))
    assert sent[0]["status"] == 499


async def call(app, messages):
    """What the application sends for a POST /predict whose parts arrive as `messages`; None never arrives."""
    left, sent = iter(messages), []

    async def receive():
        message = next(left, None)
        return message if message is not None else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": [], "app": app}
    await app(scope, receive, send)
    return sent


def test_a_body_that_does_not_arrive_is_given_up(service, bundle):
    limits = service.Limits(upload_s=0.05)
    app = service.create_app(*service.open_classifier(str(bundle), limits, threads=1), limits)
    with TestClient(app):
        sent = asyncio.run(call(app, [{"type": "http.request", "body": b"x", "more_body": True}]))
    assert sent[0]["status"] == 408
    assert b"did not arrive within 0.05 seconds" in sent[1]["body"]


def test_too_many_at_once_are_told_to_come_back(client, app, monkeypatch):
    inside, go = threading.Semaphore(0), threading.Event()
    predict = app.state.classifier.predict_async

    async def slow(image, *, top):
        inside.release()
        assert await asyncio.to_thread(go.wait, 300)
        return await predict(image, top=top)

    monkeypatch.setattr(app.state.classifier, "predict_async", slow)
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(client.post("/predict", content=PHOTO).status_code))
               for _ in range(4)]
    for one in threads:
        one.start()
    for _ in threads:
        assert inside.acquire(timeout=300)
    told = client.post("/predict", content=PHOTO)
    assert (told.status_code, told.headers["Retry-After"]) == (503, "1")
    assert client.get("/healthz").status_code == 200
    go.set()
    for one in threads:
        one.join(300)
    assert codes == [200] * 4
    assert client.post("/predict", content=PHOTO).status_code == 200


def test_a_full_queue_is_told_to_come_back_too(client, app, monkeypatch):
    def full(*arguments, **options):
        raise Overloaded("64 images are waiting already.")

    monkeypatch.setattr(app.state.classifier, "predict_async", full)
    told = client.post("/predict", content=PHOTO)
    assert (told.status_code, told.headers["Retry-After"]) == (503, "1")


def samples_of(client):
    """Values of /metrics by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    shown = client.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=")
    return {(one.name, *one.labels.values()): one.value
            for family in text_string_to_metric_families(shown.text) for one in family.samples}


def test_metrics_in_prometheus_text(client, expected):
    client.post("/predict", content=PHOTO)
    client.post("/predict", content=b"text")
    samples = samples_of(client)
    assert samples["edgetl_requests_total", "200"] == 1
    assert samples["edgetl_requests_total", "422"] == 1
    assert samples["edgetl_answers_total", expected.label] == 1
    assert samples[("edgetl_images_total",)] == 1
    assert samples[("edgetl_recent_top_score",)] == pytest.approx(expected.score)
    assert samples[("edgetl_requests_at_once",)] == 0
    assert samples[("edgetl_rejected_total",)] == 0
    assert samples["edgetl_predict_seconds_bucket", "+Inf"] >= 1


def test_rejections_and_drift(service, bundle, tmp_path):
    """A bundle that rejects everything, and was exported where everything was a fox: after 120 photos that is seen."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    moments = {"mean": 0.99, "variance": 1e-4}
    edit_manifest(copy, "reject_below", value=1.0)
    edit_manifest(copy, "drift_reference", value={"variant": "fp32", "split": "val", "count": 1000, "top": moments,
                                                  "entropy": moments, "class_counts": [0, 0, 1000]})
    with TestClient(service.create_app(*service.open_classifier(str(copy), service.Limits(), threads=1))) as client:
        assert client.get("/drift").json()["verdict"]["status"] == "undecided"
        for _ in range(120):
            assert client.post("/predict", content=PHOTO).json()["rejected"] is True
        told = client.get("/drift").json()
        assert told["snapshot"]["count"] == 120
        assert told["verdict"]["alarm"] is True
        assert told["verdict"]["reasons"]
        assert samples_of(client)[("edgetl_rejected_total",)] == 120


def test_drift_without_a_reference_is_statistics_only(client):
    client.post("/predict", content=PHOTO)
    told = client.get("/drift").json()
    assert (told["snapshot"]["count"], told["verdict"]) == (1, None)


def test_the_classifier_is_closed_with_the_application(service, bundle):
    classifier, drift = service.open_classifier(str(bundle), service.Limits(), threads=1)
    with TestClient(service.create_app(classifier, drift)) as client:
        assert client.post("/predict", content=PHOTO).status_code == 200
    with pytest.raises(BackendUnavailable, match="closed"):
        classifier.predict(PHOTO)


def test_a_bundle_that_cannot_be_opened_is_exit_one(service, capsys):
    assert service.main(["/nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: /nowhere does not exist.\nhint: ")


# --------------------------------------------------------------------------------------------------- a real server


@pytest.fixture
def server(bundle):
    words = [sys.executable, str(EXAMPLES / "service.py"), str(bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            started = (re.search(r"running on (http://127\.0\.0\.1:\d+)", line) for line in process.stdout)
            found = next(filter(None, started), None)
            assert found, "the server did not start"
            yield process, found[1]
        finally:
            process.kill()  # leaving the block waits for its end


def post(url, body):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, json.load(problem)


def begin_post(url, length):
    """A connection on which the head of a POST was sent."""
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 300)
    connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    return connection


def test_a_real_server_answers_and_ends_gracefully(server, expected):
    process, url = server
    code, told = post(f"{url}/predict", PHOTO)
    assert (code, told["label"]) == (200, expected.label)
    assert post(f"{url}/predict", b"text")[0] == 422
    with begin_post(url, 11 * 2**20) as large:  # refused by its length, before any of it is sent
        assert b" 413 " in large.recv(4096)
    with urllib.request.urlopen(f"{url}/readyz", timeout=300) as answer:
        assert answer.headers["server"] is None
    with begin_post(url, len(PHOTO)) as slow:  # a body that is on its way when SIGTERM comes is answered
        slow.sendall(PHOTO[:100])
        with urllib.request.urlopen(f"{url}/readyz", timeout=300):  # asked later, answered: the head has been read
            process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        slow.sendall(PHOTO[100:])
        answered = b"".join(iter(lambda: slow.recv(4096), b""))
    assert b" 200 OK" in answered.splitlines()[0]
    assert expected.label.encode() in answered
    assert process.wait(timeout=300) in (0, -signal.SIGTERM)
    assert "Traceback" not in process.stdout.read()
