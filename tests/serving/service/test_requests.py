"""Who may ask and what: parameters, fields, origins, sites, thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fedvad.errors import ArtefactError, ConfigError
from fedvad.serving.predictor import Predictor
from fedvad.serving.service.app import create_app
from fedvad.serving.service.settings import ServiceSettings
from fedvad.serving.service.sites import SitePredictors
from tests.serving.service.conftest import MakeClient, Run
from tests.serving.service.support import Stub, upload


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/v1/predict?thresold=1", "unknown query parameter 'thresold'; known here: heatmap, site"),
        ("/v1/predict?threshold=1&threshold=2", "'threshold' is given twice"),
        ("/v1/predict?threshold=nan", "threshold: "),
        ("/v1/predict?threshold=high", "not 'high'"),
        ("/v1/predict?site=oak", "this service offers birch only"),
        ("/v1/predict?heatmap=maybe", "not 'maybe'"),
    ],
)
def test_parameters_that_would_do_nothing_are_refused(
    client: TestClient, files: list[Path], path: str, reason: str
) -> None:
    answer = client.post(path, files=upload(files[0].read_bytes()))
    assert answer.status_code == 422
    assert reason in answer.json()["error"]["message"]
    for other in ("/v1/info", "/v1/health", "/v1/samples", "/v1/metrics"):
        assert client.get(f"{other}?x=1").json()["error"]["code"] == "unknown_parameter"
    assert client.get("/?from=mail").status_code == 200


def test_a_refusal_says_what_to_send(client: TestClient, files: list[Path]) -> None:
    image = ("a.png", files[0].read_bytes())
    reported = {
        "wrong field": client.post("/v1/predict", files={"file": image}),
        "text": client.post("/v1/predict", files={"files": (None, "hello")}),
        "also wrong": client.post("/v1/predict", files={"files": image, "note": (None, "x")}),
        "json": client.post("/v1/predict", json={"image": "aGk="}),
    }
    for answer in reported.values():
        assert answer.status_code in (415, 422)
        assert "curl -F files=@part.png" in answer.json()["error"]["message"]
    assert "application/json" in reported["json"].json()["error"]["message"]
    assert "POST /v1/predict" in client.get("/predict").json()["error"]["message"]
    wrong = client.get("/v1/predict")
    assert wrong.status_code == 405
    assert "use POST" in wrong.json()["error"]["message"]


def test_a_refusal_names_its_option(make_client: MakeClient, files: list[Path]) -> None:
    image = files[0].read_bytes()
    client = make_client(max_total_bytes=len(image), max_files=1)
    small = make_client(max_file_bytes=10)

    def message(answer: object) -> str:
        return str(answer.json()["error"]["message"])  # type: ignore[attr-defined]

    assert "--max-total-mb" in message(client.post("/v1/predict", files=upload(image)))
    assert "--max-files" in message(client.post("/v1/predict", files=upload(b"a", b"b")))
    (result,) = small.post("/v1/predict", files=upload(image)).json()["results"]
    assert "--max-mb" in result["error"]["message"]


def test_head_is_answered_like_get_without_a_body(client: TestClient) -> None:
    for path in ("/v1/health", "/", "/nowhere"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/v1/predict").status_code == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://tls.proxy.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://dashboard.example"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://testserver:81"}, 403),
        ({"Origin": "http://testserver.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://testserver:81", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_may_not_send_images(
    make_client: MakeClient, files: list[Path], headers: dict[str, str], status: int
) -> None:
    client = make_client(allowed_origins=("https://dashboard.example",))
    answer = client.post("/v1/predict", files=upload(files[0].read_bytes()), headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "cross_site"
        assert "--allow-origin" in answer.json()["error"]["message"]
    allowed = headers.get("Origin") == "https://dashboard.example"
    assert ("access-control-allow-origin" in answer.headers) is allowed


@pytest.mark.parametrize("wrong", ["dashboard.example", "https://a.example/page", "ftp://a", ""])
def test_an_origin_is_scheme_and_name(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--allow-origin"):
        ServiceSettings(allowed_origins=(wrong,))


def test_a_threshold_of_the_request_decides(
    client: TestClient, predictor: Predictor, files: list[Path]
) -> None:
    image = files[0].read_bytes()
    (own,) = client.post("/v1/predict", files=upload(image)).json()["results"]
    assert predictor.threshold is not None
    assert own["threshold"] == predictor.threshold.value
    for shift, anomalous in ((-0.01, True), (0.01, False)):
        given = own["score"] + shift
        (found,) = client.post(
            "/v1/predict", params={"threshold": given}, files=upload(image)
        ).json()["results"]
        assert found["score"] == pytest.approx(own["score"], abs=1e-5)
        assert (found["threshold"], found["anomalous"]) == (given, anomalous)
    (broken,) = client.post("/v1/predict?threshold=7", files=upload(b"x")).json()["results"]
    assert (broken["threshold"], broken["anomalous"]) == (7.0, None)


@pytest.fixture(scope="module")
def all_sites(trained: Run) -> Iterator[TestClient]:
    """A service without a site, that offers those of the run."""
    with Predictor.load(trained[0]) as everything:
        sites = SitePredictors(
            everything, ["birch", "alder"], lambda name: Predictor.load(trained[0], site=name)
        )
        with TestClient(create_app(everything, sites=sites)) as client:
            yield client


def test_a_service_of_all_sites_lets_the_request_choose(
    all_sites: TestClient, predictor: Predictor, files: list[Path]
) -> None:
    assert all_sites.get("/v1/info").json()["sites"] == ["alder", "birch"]
    assert all_sites.get("/v1/info").json()["site"] is None
    info = all_sites.get("/v1/info?site=birch").json()
    assert predictor.threshold is not None
    assert (info["site"], info["calibration"]["threshold"]) == ("birch", predictor.threshold.value)
    image = upload(files[0].read_bytes())
    answer = all_sites.post("/v1/predict?site=birch", files=image).json()
    (expected,) = predictor.predict([files[0]])
    assert answer["site"] == "birch"
    assert answer["results"][0]["score"] == pytest.approx(expected.score, abs=1e-5)
    assert answer["results"][0]["threshold"] == expected.threshold
    unknown = all_sites.post("/v1/predict?site=oak", files=image)
    assert unknown.status_code == 422
    assert "alder, birch" in unknown.json()["error"]["message"]


def test_an_answer_that_takes_too_long_names_the_image(
    make_client: MakeClient, predictor: Predictor, files: list[Path]
) -> None:
    stub = Stub(predictor)
    stub.go.set()
    client = make_client(stub, timeout_s=0.3)
    stub.go.clear()
    slow = client.post("/v1/predict", files=upload(files[0].read_bytes(), name="part 7.png"))
    stub.go.set()
    assert slow.status_code == 504
    message = slow.json()["error"]["message"]
    assert "part 7.png (image 1 of 1) was not done within 0.3 s" in message
    assert "--timeout" in message


def test_a_site_that_cannot_be_loaded_is_refused_and_logged(
    predictor: Predictor, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def load(name: str) -> Predictor:
        raise ArtefactError("secret path is damaged")

    app = create_app(predictor, sites=SitePredictors(predictor, ["alder"], load))
    with TestClient(app, raise_server_exceptions=False) as client:
        image = upload(files[0].read_bytes())
        for answer in (
            client.post("/v1/predict?site=alder", files=image),
            client.get("/v1/info?site=alder"),
        ):
            assert answer.status_code == 503
            assert "secret" not in answer.text
        assert client.post("/v1/predict", files=image).status_code == 200
    assert "secret path is damaged" in caplog.text
