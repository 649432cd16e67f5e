"""Answers over HTTP: kept in the run, effective at once, undone; refused unless allowed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import fedvad
from fedvad.data.locks import only_one
from fedvad.errors import ArtefactError
from fedvad.serving.service.answers import Answers
from fedvad.serving.service.app import create_app
from fedvad.serving.service.overview import sites_of
from fedvad.serving.service.sites import SitePredictors
from tests.serving.service.conftest import MakeClient, Run
from tests.serving.service.support import png_of_size, upload


@pytest.fixture
def service(answering: tuple[SitePredictors, Answers]) -> Iterator[TestClient]:
    sites, answers = answering
    app = create_app(sites.default, sites=sites, answers=answers)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def odd(plants: Path) -> Path:
    return sorted((plants / "birch/test").glob("[!g]*/*.png"))[0]


def score(service: TestClient, image: Path, site: str) -> float:
    sent = upload(image.read_bytes())
    answer = service.post("/v1/predict", params={"site": site}, files=sent)
    return float(answer.json()["results"][0]["score"])


def give(service: TestClient, image: Path, verdict: str, **params: Any) -> Any:
    sent = upload(image.read_bytes(), name=image.name)
    params = {"site": "birch", "verdict": verdict, **params}
    return service.post("/v1/feedback", params=params, files=sent)


def test_an_answer_counts_at_once_at_its_site_and_is_undone(
    service: TestClient, odd: Path, tmp_path: Path
) -> None:
    before = {site: score(service, odd, site) for site in ("alder", "birch")}
    given = give(service, odd, "normal", region="0,0,64,64")
    assert given.status_code == 200
    reported = given.json()
    assert (reported["site"], reported["name"], reported["region"]) == (
        "birch",
        odd.name,
        [0, 0, 64, 64],
    )
    assert reported["score"] == pytest.approx(before["birch"], rel=1e-5)
    assert score(service, odd, "birch") < 0.9 * before["birch"]
    assert score(service, odd, "alder") == before["alder"]
    # what `fedvad feedback` does to the run is the same
    [row] = fedvad.predict(tmp_path / "run", [odd], site="birch")
    assert row["score"] == pytest.approx(score(service, odd, "birch"), rel=1e-5)
    assert service.get("/v1/feedback").json() == [reported]
    undone = service.post(f"/v1/feedback/{reported['number']}/undo")
    assert undone.json()["undone"]
    assert score(service, odd, "birch") == before["birch"]
    assert fedvad.list_feedback(tmp_path / "run")[0]["undone"] == undone.json()["undone"]


def test_what_cannot_be_answered_is_refused_with_its_reason(
    service: TestClient, odd: Path, tmp_path: Path
) -> None:
    def refused(answer: Any) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["message"]

    assert refused(give(service, odd, "defect", site=None))[0] == 422
    assert "x,y,width,height" in refused(give(service, odd, "defect", region="1,2"))[1]
    assert "does not lie in" in refused(give(service, odd, "defect", region="60,0,9,9"))[1]
    assert "no answer 7 counts" in refused(service.post("/v1/feedback/7/undo"))[1]
    two = service.post(
        "/v1/feedback", params={"verdict": "normal", "site": "birch"}, files=upload(b"a", b"b")
    )
    assert refused(two) == (422, "an answer is about one image; send one file")
    bomb = upload(png_of_size(9000, 9000))
    params = {"verdict": "normal", "site": "alder"}
    assert refused(service.post("/v1/feedback", params=params, files=bomb))[0] == 422
    with only_one(tmp_path / "run"):
        status, why = refused(give(service, odd, "defect"))
        assert status == 409
        assert str(tmp_path) not in why
    assert service.get("/v1/feedback").json() == []
    assert give(service, odd, "defect").status_code == 200


def test_sites_of_several_runs_stand_side_by_side(
    make_client: MakeClient, trained: Run, odd: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(trained[0], tmp_path / "other"))
    fedvad.feedback(other, odd, "defect", site="alder")
    rows = sites_of([trained[0], other])
    assert [row.site for row in rows] == 2 * ["alder", "birch", "cedar"]
    assert [row.answers for row in rows] == [0, 0, 0, 1, 0, 0]
    for row in rows[:3]:
        assert row.image_auroc == trained[1]["image_auroc"]["sites"][row.site]
        assert row.promised is not None
        assert row.n_images == 6
    assert make_client().get("/v1/sites").json() == []


def test_answers_are_refused_unless_the_service_allows_them(
    make_client: MakeClient, odd: Path
) -> None:
    client = make_client()
    assert client.get("/v1/info").json()["feedback"] is False
    for answer in (give(client, odd, "normal"), client.get("/v1/feedback"),
                   client.post("/v1/feedback/1/undo")):  # fmt: skip
        assert answer.status_code == 403
        assert "--feedback" in answer.json()["error"]["message"]


def test_an_answer_that_is_kept_but_not_in_effect_is_no_refusal(
    service: TestClient, odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: SitePredictors) -> None:
        raise ArtefactError("the weights are gone")

    monkeypatch.setattr(SitePredictors, "renew", broken)
    answer = give(service, odd, "normal")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "not_in_effect")
    assert "answer 1 is kept" in answer.json()["error"]["message"]
    assert len(fedvad.list_feedback(tmp_path / "run")) == 1
    assert service.post("/v1/feedback/1/undo").status_code == 500
    assert fedvad.list_feedback(tmp_path / "run")[0]["undone"]


@pytest.mark.parametrize(
    ("params", "field"),
    [({}, "site is missing"), ({"site": "birch", "region": "0,0,99,99"}, "region 0,0,99,99 does")],
)
def test_refusals_name_the_field_of_the_request(
    service: TestClient, odd: Path, params: dict[str, str], field: str
) -> None:
    sent = upload(odd.read_bytes())
    answer = service.post("/v1/feedback", params={"verdict": "normal", **params}, files=sent)
    message = answer.json()["error"]["message"]
    assert field in message
    assert "--" not in message
