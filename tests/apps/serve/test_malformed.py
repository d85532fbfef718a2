"""Malformed requests, made from the OpenAPI schema and from valid requests: no status 500, and no slot is lost."""

import json
import warnings

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from florence2.apps.serve.request_limits import RequestLimits
from tests.apps.serve.live_server import data_uri, live_server

ANSWERED = {200, 400, 401, 404, 405, 408, 413, 415, 422, 503, 504}
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(["caption", "od", "<OD>", "od+ocr", "\ud800", data_uri(), data_uri()[:200], "json", "1,1,9,9"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}, "tags": {"type": "array"}}}
PART = {"type": "image_url", "image_url": {"url": data_uri()}}
VALID = {
    "/v1/chat/completions": {
        "model": "demo",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Describe"}, PART]}],
        "stream": False,
        "max_tokens": 8,
        "temperature": 0.5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    },
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": data_uri()}]}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "max_output_tokens": 8,
        "stream": False,
    },
    "/v1/predict": {"image": data_uri(), "task": ["caption"], "task_input": "", "max_length": 8, "seed": 1},
    "/api/generate": {"prompt": "od", "images": [data_uri()], "format": SCHEMA, "options": {"num_predict": 8}},
    "/api/chat": {"messages": [{"role": "user", "content": "x", "images": [data_uri()]}], "stream": False},
    "/api/show": {"model": "demo"},
}


def paths(value: object, path: tuple = ()) -> list[tuple]:
    """List the paths of all values inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, inner in items for each in paths(inner, (*path, key)))]


def replaced(value, path: tuple, new):
    """Return a copy of a JSON value with one value inside it replaced."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@st.composite
def requests(draw) -> tuple[str, object]:
    """Take a valid request, and replace one or two of its values by any others."""
    address = draw(st.sampled_from(sorted(VALID)))
    body = VALID[address]
    for _ in range(draw(st.integers(1, 2))):
        body = replaced(body, draw(st.sampled_from(paths(body))), draw(VALUES))
    return address, body


def check_many(server, examples: int) -> None:
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )

    with server.client() as client:

        @seed(7)
        @options
        @given(requests())
        def check(request: tuple[str, object]) -> None:
            address, body = request
            content = json.dumps(body).encode()
            response = client.post(address, content=content, headers={"content-type": "application/json"})
            assert response.status_code in ANSWERED, (address, body, response.text)
            assert len(response.content) < 200_000

        check()
        server.wait_until_idle()
        assert client.post("/v1/predict", json=VALID["/v1/predict"]).status_code == 200


def check_schema(server, examples: int) -> None:
    """Send what the OpenAPI schema allows, and what it does not."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:

            @seed(7)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(operation.as_strategy(generation_mode=mode))
            def check(case) -> None:
                response = case.call()
                assert response.status_code in ANSWERED, (case.method, case.path, response.text)

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of schemathesis' own code
                try:
                    check()
                except BaseException as error:
                    if type(error).__name__ != "Unsatisfiable":  # a GET without parameters has no wrong request
                        raise
    server.wait_until_idle()


@pytest.fixture(scope="module")
def server():
    with live_server(RequestLimits(request_timeout=10)) as live:
        yield live


def test_changed_requests(server) -> None:
    check_many(server, 120)


@pytest.mark.filterwarnings("ignore")  # of schemathesis' own code
def test_requests_of_the_schema(server) -> None:
    check_schema(server, 4)


@pytest.mark.long
def test_ten_thousand_changed_requests(server) -> None:
    check_many(server, 10_000)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_many_requests_of_the_schema(server) -> None:
    check_schema(server, 60)
