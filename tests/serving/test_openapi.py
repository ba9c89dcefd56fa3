"""Schemathesis reads the OpenAPI document and tries to make the server stumble."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.inference.speaking import speaking_model
from tests.serving import running


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = running.settings(speaking_model(tmp_path_factory.mktemp("openapi")))
    return schemathesis.openapi.from_asgi("/openapi.json", running.api_of(config, running.backends(config)))


def test_no_input_makes_the_server_stumble(document: Any) -> None:
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 7
    for operation in operations:

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def stumble(case: Any) -> None:
            answer = case.call()
            assert answer.status_code < 500, answer.text

        stumble()


def test_the_document_names_the_routes_and_the_fields(tmp_path: Path) -> None:
    config = running.settings(speaking_model(tmp_path))
    tree = running.api_of(config, running.backends(config)).openapi()
    assert {"/v1/audio/speech", "/v1/models", "/v1/audio/voices", "/health/live", "/metrics"} <= set(tree["paths"])
    body = tree["paths"]["/v1/audio/speech"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "input", "voice", "response_format", "speed", "stream_format", "seed"} <= set(body["properties"])
