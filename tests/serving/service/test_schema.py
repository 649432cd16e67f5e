"""schemathesis: whatever OpenAPI allows or forbids, nothing crashes and errors are explained."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fedvad.serving.predictor import Predictor
from fedvad.serving.service.app import create_app
from fedvad.serving.service.settings import ServiceSettings

TOKEN = "correct-horse-battery"
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
ROUTES = {
    "/v1/predict": "POST",
    "/v1/health": "GET",
    "/v1/info": "GET",
    "/v1/metrics": "GET",
    "/v1/samples": "GET",
    "/v1/samples/{number}": "GET",
    "/v1/sites": "GET",
    "/v1/lines": "GET",
    "/v1/lines/{number}/changed": "GET",
    "/v1/feedback": "POST",
    "/v1/feedback/{number}/undo": "POST",
}


@pytest.fixture(scope="module")
def document(predictor: Predictor) -> schemathesis.BaseSchema:
    app = create_app(predictor, ServiceSettings(token=TOKEN, max_total_bytes=200_000))
    return schemathesis.openapi.from_asgi("/v1/openapi.json", app)


def test_every_route_is_tried(document: schemathesis.BaseSchema) -> None:
    assert set(document.raw_schema["paths"]) == set(ROUTES)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_that_can_be_asked_is_a_failure_of_ours(
    document: schemathesis.BaseSchema, path: str, mode: GenerationMode
) -> None:
    operation = document[path][ROUTES[path]]
    if mode is GenerationMode.NEGATIVE and not operation.query and not operation.path_parameters:
        pytest.skip("it takes nothing that could be wrong")
    examples = 120 if path == "/v1/predict" else 15
    statuses: set[int] = set()

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        statuses.add(answer.status_code)
        assert answer.status_code < 500
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert statuses
    if path == "/v1/predict" and mode is GenerationMode.POSITIVE:
        assert 200 in statuses
