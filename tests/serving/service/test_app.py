"""The service's answers: results, errors per file, health, info, metrics, samples, page."""

from __future__ import annotations

import base64
import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from fedvad._version import __version__
from fedvad.evaluation.thresholds import Threshold
from fedvad.report.html.record import Gallery
from fedvad.serving.predictor import Predictor
from fedvad.serving.service.guard import SECURITY_HEADERS
from fedvad.serving.service.samples import Sample, load_samples
from tests.helpers import SIZE
from tests.serving.service.conftest import MakeClient, Run
from tests.serving.service.support import Stub, upload

TOKEN = "correct-horse-battery"


def test_each_file_gets_the_predictors_result(
    client: TestClient, predictor: Predictor, files: list[Path]
) -> None:
    sent = [("files", (path.name, path.read_bytes())) for path in files]
    answer = client.post("/v1/predict", files=sent)
    assert answer.status_code == 200
    assert answer.json()["site"] == "birch"
    results = answer.json()["results"]
    assert [r["name"] for r in results] == [path.name for path in files]
    for result, expected in zip(results, predictor.predict(files), strict=True):
        assert result["score"] == pytest.approx(expected.score, abs=1e-5)
        assert result["threshold"] == expected.threshold
        assert result["anomalous"] is expected.anomalous
        assert (result["width"], result["height"]) == (SIZE, SIZE)
        assert result["heatmap"] is result["error"] is None


def test_heatmaps_are_transparent_pictures_of_the_images_shape(client: TestClient) -> None:
    buffer = BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(buffer, "PNG")
    answer = client.post(
        "/v1/predict", params={"heatmap": True}, files=upload(buffer.getvalue())
    ).json()["results"][0]
    assert answer["anomalous"] is True
    with Image.open(BytesIO(base64.b64decode(answer["heatmap"]))) as picture:
        assert picture.format == "PNG"
        assert picture.size == (256, 128)
        alpha = np.asarray(picture.convert("RGBA"))[:, :, 3]
    assert alpha.min() == 0
    assert alpha.max() == 255


def test_a_file_that_cannot_be_read_is_a_result(client: TestClient, files: list[Path]) -> None:
    sent = [
        ("files", ("notes.txt", b"hello")),
        ("files", ("good.png", files[0].read_bytes())),
        ("files", ("cut.png", files[0].read_bytes()[:200])),
        ("files", ("empty.png", b"")),
    ]
    answer = client.post("/v1/predict?heatmap=true", files=sent)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [r["error"] is None for r in results] == [False, True, False, False]
    assert results[0]["error"]["code"] == "unreadable"
    assert results[0]["error"]["message"].startswith("notes.txt: is not a PNG")
    assert results[0]["score"] is results[0]["anomalous"] is results[0]["heatmap"] is None
    assert results[1]["heatmap"]


def test_names_are_made_printable_and_cut(client: TestClient, files: list[Path]) -> None:
    image = files[0].read_bytes()
    names = ["../../etc/passwd", "a\u202egnp.exe", "x" * 3000]
    sent = [("files", (name, image)) for name in names]
    found = [r["name"] for r in client.post("/v1/predict", files=sent).json()["results"]]
    assert found == ["../../etc/passwd", "a\ufffdgnp.exe", "x" * 200]


def test_health_and_info(make_client: MakeClient, predictor: Predictor) -> None:
    client = make_client(name="line 4", max_files=3)
    assert client.get("/v1/health").json() == {"status": "ok", "version": __version__}
    info = client.get("/v1/info").json()
    threshold = predictor.threshold
    assert threshold is not None
    assert info["name"] == "line 4"
    assert info["site"] == "birch"
    assert info["calibration"] == {
        "threshold": threshold.value,
        "target_fpr": threshold.target_fpr,
        "n": threshold.n,
        "method": threshold.method,
        "scores": list(threshold.scores),
        "promise": {
            "rate": pytest.approx(1 - 0.05 ** (1 / 6)),
            "confidence": 0.95,
            "above": 0,
            "images": 6,
        },
        "promised": threshold.promised,
    }
    assert "6 normal images promise at most 39.3 %" in info["calibration"]["promised"]
    assert len(threshold.scores) == threshold.n
    assert info["limits"]["max_files"] == 3
    assert info["limits"]["max_pixels"] == 4_000_000


def test_kept_calibration_scores_are_reported(
    make_client: MakeClient, predictor: Predictor
) -> None:
    stub = Stub(predictor)
    stub.go.set()
    stub.threshold = Threshold(  # type: ignore[attr-defined]
        value=1.0, n=3, method="conformal", target_fpr=0.25, scores=(0.9, 0.4, 1.0)
    )
    found = make_client(stub).get("/v1/info").json()["calibration"]
    assert found["scores"] == [0.4, 0.9, 1.0]
    assert found["promise"]["images"] == 3
    assert found["target_fpr"] == 0.25


def test_metrics_count_requests_and_images(client: TestClient, files: list[Path]) -> None:
    client.post("/v1/predict", files=upload(files[0].read_bytes(), b"junk"))
    client.post("/v1/predict", files=upload())
    client.get("/nowhere")
    answer = client.get("/v1/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'fedvad_http_requests_total{route="/v1/predict",status="200"} 1.0' in lines
    assert 'fedvad_http_requests_total{route="/v1/predict",status="415"} 1.0' in lines
    assert 'fedvad_http_requests_total{route="unknown",status="404"} 1.0' in lines
    assert 'fedvad_images_total{outcome="unreadable"} 1.0' in lines
    assert "fedvad_requests_in_flight 0.0" in lines
    assert "fedvad_image_seconds_count 2.0" in lines
    assert f'fedvad_build{{version="{__version__}"}} 1.0' in lines


def test_two_services_do_not_share_their_metrics(make_client: MakeClient) -> None:
    one, other = make_client(), make_client()
    one.get("/v1/health")
    assert "/v1/health" in one.get("/v1/metrics").text
    assert "/v1/health" not in other.get("/v1/metrics").text


def test_a_token_guards_everything_but_health_and_the_page(
    make_client: MakeClient, files: list[Path]
) -> None:
    client = make_client(token=TOKEN, samples=[Sample("a", "b", "good", b"webp")])
    sent = upload(files[0].read_bytes())
    wrong = ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"})
    for headers in wrong:
        for path in ("/v1/info", "/v1/metrics", "/v1/samples", "/v1/samples/0"):
            assert client.get(path, headers=headers).status_code == 401
        answer = client.post("/v1/predict", files=sent, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "unauthorised"
    assert client.get("/v1/health").status_code == client.get("/").status_code == 200
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/samples/0", headers=right).content == b"webp"
    assert client.post("/v1/predict", files=sent, headers=right).status_code == 200


def test_samples_are_the_runs_pictures_of_the_site(trained: Run, make_client: MakeClient) -> None:
    samples = load_samples(trained[0], "birch", limit=4)
    assert {s.site for s in samples} == {"birch"}
    assert len(samples) == 4
    assert [s.defect == "good" for s in samples] == [True, False, True, False]
    assert len(load_samples(trained[0], None, limit=100)) == 21  # all test images of three sites
    client = make_client(samples=samples)
    listed = client.get("/v1/samples").json()
    assert [entry["id"] for entry in listed] == [0, 1, 2, 3]
    picture = client.get("/v1/samples/1")
    assert picture.headers["content-type"] == "image/webp"
    gallery = Gallery.read(trained[0])
    assert gallery is not None
    scores = {p.file: p.score for p in gallery.pictures if p.site == "birch"}
    for i, entry in enumerate(listed):  # as the original files were, not as small copies
        sent = upload(client.get(f"/v1/samples/{i}").content)
        scored = client.post("/v1/predict", files=sent).json()["results"][0]
        assert scored["score"] == pytest.approx(scores[entry["name"]], rel=1e-5)
    for number in (-1, 4, 99):
        assert client.get(f"/v1/samples/{number}").status_code == 404
    assert client.get("/v1/samples/x").json()["error"]["code"] == "invalid"


def test_a_run_without_pictures_has_no_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_samples(tmp_path) == []
    (tmp_path / "gallery.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert load_samples(tmp_path) == []
    assert "damaged" in caplog.text


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/page.js", "/v1/health", "/nowhere", "/v1/predict"):
        headers = client.get(path).headers
        for name, value in SECURITY_HEADERS.items():
            if name != "Cache-Control":
                assert headers[name] == value
        assert headers["Cache-Control"] in ("no-store", "no-cache")
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "unsafe" not in policy


def test_the_page_comes_from_this_service_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    script, style = client.get("/page.js"), client.get("/page.css")
    assert script.headers["content-type"].startswith("text/javascript")
    assert style.headers["content-type"].startswith("text/css")
    for text in (page.text, script.text, style.text):
        assert "https://" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert client.get("/docs").status_code == 404  # they load scripts from elsewhere


def test_a_failure_of_ours_is_logged_and_tells_nothing(
    make_client: MakeClient, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    stub = Stub(predictor, fails=True)
    stub.warm_up = lambda: None  # type: ignore[attr-defined]
    client = make_client(stub)
    answer = client.post("/v1/predict", files=upload(b"x"))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "secret reason" in caplog.text
    assert "fedvad_requests_in_flight 0.0" in client.get("/v1/metrics").text


def test_other_hosts_are_not_answered(make_client: MakeClient) -> None:
    client = make_client(allowed_hosts=("localhost", "127.0.0.1"))
    assert client.get("/v1/health").status_code == 400  # testserver
    for host in ("localhost:8000", "127.0.0.1", "LOCALHOST"):
        assert client.get("/v1/health", headers={"Host": host}).status_code == 200
    assert client.get("/v1/health", headers={"Host": "evil.example"}).status_code == 400


def test_the_openapi_document_describes_upload_results_and_refusals(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()
    post = document["paths"]["/v1/predict"]["post"]
    field = post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["files"]
    assert field["items"]["format"] == "binary"
    assert set(post["responses"]) == {
        "200", "400", "403", "408", "413", "415", "422", "429", "503", "504", "401"
    }  # fmt: skip
    for status, response in post["responses"].items():
        model = response["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        assert model == ("Predictions" if status == "200" else "Problem")
