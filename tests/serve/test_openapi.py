"""Requests made from the OpenAPI document: no 500, and no answer that the document does not describe.

OVSEG_SCHEMATHESIS_CASES sets the number of requests for each route; 2000 in all takes some minutes.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import requests
from service_process import Service

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis")

CASES = int(os.environ.get("OVSEG_SCHEMATHESIS_CASES", "25"))
PATHS = (
    "/open-vocabulary-segmentation",
    "/instance-segmentation",
    "/shitu-index-build",
    "/shitu-index-add",
    "/shitu-index-remove",
    "/shitu-infer",
    "/health",
    "/health/live",
    "/health/ready",
    "/info",
)


def checks() -> list[Any]:
    from schemathesis.specs.openapi import checks as openapi

    return [
        schemathesis.checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_headers_conformance,
        openapi.response_schema_conformance,
        openapi.negative_data_rejection,
    ]


@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_described(service: Service, path: str) -> None:
    document = schemathesis.openapi.from_url(service.url + "/openapi.json")
    methods = [operation.ok() for operation in document.get_all_operations() if operation.ok().path == path]
    assert len(methods) == 1
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    session = requests.Session()

    for mode in modes if methods[0].method == "post" else modes[:1]:
        sent = 0

        @hypothesis.given(case=methods[0].as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=CASES // 2,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def send(case: Any) -> None:
            nonlocal sent
            sent += 1
            case.call_and_validate(session=session, checks=checks())

        send()
        assert sent
