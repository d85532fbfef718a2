"""What a server refuses and survives: keys, sizes, full queues, slow and vanishing clients, images that are none."""

import asyncio
import contextlib
import io
import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from florence2.apps.serve.request_limits import RequestLimits
from florence2.apps.serve.site_check import SiteCheck
from tests.apps.serve.live_server import LiveServer, data_uri, live_server, png, predict_alone

LIMITS = RequestLimits(
    max_request_bytes=2_000_000, max_image_pixels=1_000_000, max_images=3, max_predictions=20, request_timeout=3
)


@pytest.fixture(scope="module")
def server():
    with live_server(LIMITS) as live:
        yield live


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client
    server.wait_until_idle()


def predict(client, image=None, **options) -> httpx.Response:
    body = {"image": data_uri() if image is None else image, "task": "caption", **options}
    return client.post("/v1/predict", json=body)


def encoded(image: Image.Image, kind: str) -> tuple[str, bytes]:
    stream = io.BytesIO()
    image.save(stream, kind)
    return "image", stream.getvalue()


def test_sizes_are_limited(client) -> None:
    large = {"image": "A" * 2_000_001}
    assert client.post("/v1/predict", json=large).status_code == 413
    chunks = (b" " * 100_000 for _ in range(30))  # without a content length
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # the server answers before the body has ended
        assert client.post("/v1/predict", content=chunks).status_code == 413
    files = {"image": encoded(Image.new("RGB", (1001, 1000)), "PNG")}
    refused = client.post("/v1/predict", files=files)
    assert (refused.status_code, "1,000,000 pixels" in refused.text) == (413, True)
    assert predict(client, images=[data_uri()] * 3).status_code == 413
    cascade = "+".join(["od", *["region_to_description", "caption_to_phrase_grounding"] * 4])
    assert predict(client, task=cascade).status_code in (200, 400, 504)  # a busy machine needs its 3 seconds
    many = predict(client, task="open_vocabulary_detection", task_input=", ".join(map(str, range(30))))
    assert (many.status_code, "more than 20 predictions" in many.text) == (400, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        png()[:400],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg/>",
        b"\x89PNG\r\n",
    ],
    ids=["empty", "words", "truncated", "eps", "svg", "header"],
)
def test_what_is_no_image_is_a_bad_request(client, content: bytes) -> None:
    response = client.post("/v1/predict", files={"image": ("a.png", content)})
    assert response.status_code == 400
    assert "a.png" in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(client, kind: str) -> None:
    files = {"image": encoded(Image.open(io.BytesIO(png())), kind)}
    assert client.post("/v1/predict", files=files, data={"task": "od"}).json()["predictions"][0]["answer"]["bboxes"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"task": "region_to_category", "task_input": "5,5,2,2"}, "is empty"),
        ({"task": "od", "task_input": "cat"}, "is not used"),
        ({"task": "od+caption"}, "cannot follow"),
        ({"num_beams": 3}, "start the server with `--num_beams 3`"),
        ({"tasks": ["od"]}, "did you mean `task`?"),
        ({"task": "region_to_category"}, "as the input: `task_input`"),
        ({"temperature": -1}, "`temperature` is -1"),
        ({"max_length": 0}, "number of tokens is 0"),
        ({"image": "https://example.com/a.png"}, "not fetched from `example.com`"),
        ({"image": "file:///etc/passwd"}, "not valid base64"),
        ({"image": "data:image/png,abc"}, "not base64 data"),
        ({"task": ["caption", 5]}, "`task"),
        ({"image": ""}, "holds no image"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_reasons(client, options: dict, reason: str) -> None:
    response = predict(client, **options)
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
    assert len(response.text) < 500


def test_keys_in_the_address_are_refused(client) -> None:
    response = client.post("/v1/predict?task=od", files={"image": ("a.png", png())})
    assert (response.status_code, "`task` is in the address" in response.text) == (400, True)


def test_regions_in_pixels_equal_location_tokens(client) -> None:
    width, height = Image.open(io.BytesIO(png())).size
    region = f"0,0,{width // 2},{height // 2}"
    [row] = predict(client, task="region_to_category", task_input=region).json()["predictions"]
    assert row["text"] == predict_alone("region_to_category", row["input"], max_length=64).text
    assert row["input"].startswith("<loc_0><loc_0><loc_")


def test_log_has_ids_and_tasks_and_nothing_of_the_image(client, caplog) -> None:
    with caplog.at_level(logging.INFO, "florence2"):
        response = client.post(
            "/v1/predict", json={"image": data_uri(), "task": "my own secret words"}, headers={"x-request-id": "abc-1"}
        )
        bad = client.post("/v1/predict", json={"image": 5, "images": [data_uri()]})
        client.get("/v1/models/x", headers={"x-request-id": "a\tb" * 40})
    assert response.headers["x-request-id"] == "abc-1"
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("abc-1 POST /v1/predict 200 ") and "model demo, task prompt" in line for line in lines)
    assert bad.status_code == 400
    assert data_uri()[30:60] not in bad.text
    assert not any("secret" in line or data_uri()[30:60] in line or "\t" in line for line in lines)
    assert all(len(line) < 300 for line in lines)


def test_full_queue_is_a_503_with_retry_after() -> None:
    with live_server(RequestLimits(max_queue=2)) as live, live.client() as client:
        with ThreadPoolExecutor(24) as threads:
            responses = list(threads.map(lambda _: predict(client, task=["od", "ocr"]), range(24)))
        statuses = {response.status_code for response in responses}
        assert statuses == {200, 503}
        refused = next(each for each in responses if each.status_code == 503)
        assert int(refused.headers["retry-after"]) > 0
        live.wait_until_idle()
        assert predict(client).status_code == 200


def test_key_is_required_where_one_is_set() -> None:
    with (
        live_server(api_key="secret", sites=SiteCheck(allowed_origins=("https://page.example",))) as live,
        live.client() as client,
    ):
        assert client.get("/health").status_code == 200
        for key in (None, "Bearer wrong", "Bearer", "Basic secret", "Bearer sécret".encode()):
            headers = {} if key is None else {"authorization": key}
            assert client.get("/v1/models", headers=headers).status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.post("/api/chat", json={}).json()["error"].startswith("the API key")
        right = {"authorization": "Bearer secret"}
        assert client.get("/v1/models", headers=right).status_code == 200
        asks = {"origin": "https://page.example", "access-control-request-method": "POST"}
        assert client.options("/v1/predict", headers=asks).headers["access-control-allow-origin"] == asks["origin"]
        assert client.options("/v1/predict", headers={**asks, "origin": "https://x.example"}).status_code == 400


def raw_request(server: LiveServer, body: bytes, length: int | None = None) -> socket.socket:
    """Send a request, perhaps less of it than its length, and leave the connection open."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    size = len(body) if length is None else length
    head = (
        f"POST /v1/predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_slow_clients_take_no_place_and_end_in_time(server, client) -> None:
    body = json.dumps({"image": data_uri()}).encode()
    slow = [raw_request(server, body[:100], len(body)) for _ in range(64)]
    assert server.service.num_requests == 0
    start = time.monotonic()
    assert predict(client).status_code == 200
    assert time.monotonic() - start < 2, "a client with all of its request waits for none of the others"
    slow[0].sendall(body[100:])
    assert slow[0].recv(100).startswith(b"HTTP/1.1 200")
    for connection in slow[1:]:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    for connection in slow:
        connection.close()


def test_all_bodies_together_are_limited() -> None:
    limits = RequestLimits(max_request_bytes=100_000, request_timeout=20)
    with live_server(limits) as live, live.client() as client:
        slow = [raw_request(live, b" " * 90_000, 100_000) for _ in range(18)]
        answers = [connection.recv(100) for connection in slow[-1:]]
        assert answers[0].startswith(b"HTTP/1.1 503")
        for connection in slow:
            connection.close()
        live.wait_until_idle()
        assert predict(client).status_code == 200


def test_clients_that_leave_free_their_slots(server, client) -> None:
    image_count = server.service.default.engine.engine.stats.images
    body = json.dumps({"image": data_uri(), "task": ["more_detailed_caption", "od", "ocr"]}).encode()
    for connection in [raw_request(server, body) for _ in range(40)]:
        connection.close()
    for connection in [raw_request(server, body[:2000], len(body)) for _ in range(20)]:
        connection.close()
    server.wait_until_idle()
    assert server.service.default.engine.engine.stats.images < image_count + 120, "no request was cancelled"
    assert predict(client).status_code == 200
    assert 'status="499"' in client.get("/metrics").text


def test_stream_that_is_left_ends(server, client) -> None:
    message = {"role": "user", "content": "more_detailed_caption", "images": [data_uri()]}
    with client.stream("POST", "/api/chat", json={"messages": [message]}) as response:
        assert json.loads(next(response.iter_lines()))["done"] is False
    server.wait_until_idle()


def test_requests_beyond_their_time_are_a_504() -> None:
    body = {"images": [data_uri(n) for n in range(16)], "task": ["od", "ocr"]}
    with live_server(RequestLimits(request_timeout=0.05)) as live, live.client() as client:
        statuses = {client.post("/v1/predict", json=body).status_code for _ in range(8)}
        assert 504 in statuses
        assert statuses <= {408, 504}
        live.wait_until_idle()


def test_engine_that_stops_is_a_500_and_a_sick_server() -> None:
    with live_server() as live, live.client() as client:
        assert client.get("/health").status_code == 200
        live.service.default.engine.engine.decode_step = None  # a fault that no request may cause
        assert [predict(client).status_code for _ in range(2)] == [500, 500]
        assert client.get("/health").status_code == 503
        assert client.get("/health").json()["status"] == "stopped"
        live.wait_until_idle()


def test_unknown_routes_and_methods_have_errors_in_json(client) -> None:
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/predict").json()["error"]["code"] == 405
    assert client.post("/api/tags").json() == {"error": "`/api/tags` does not answer POST; see /docs"}
    assert client.post("/v1/predict", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post("/v1/predict", content=b"[" * 100_000).status_code == 400
    assert client.post("/v1/chat/completions", content=b"\xff").status_code == 400


def test_deep_and_odd_text_is_no_failure(client) -> None:
    for words in ("\ud800", "\x00", "<s></s>", "<loc_5>", "x" * 30_000, "\u202e" * 50):
        body = json.dumps({"messages": [{"role": "user", "content": words, "images": [data_uri()]}]})
        response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 413), words[:5]
        response = client.post("/v1/predict", content=json.dumps({"image": data_uri(), "task": words}))
        assert response.status_code in (200, 400, 413), words[:5]


def test_odd_names_in_a_format_are_a_bad_request(client) -> None:
    for stream in (True, False):
        body = {"prompt": "od", "images": [data_uri()], "stream": stream, "format": {"properties": {"\ud800": {}}}}
        content = json.dumps(body)
        response = client.post("/api/generate", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400


def test_many_clients_get_their_own_answers() -> None:
    expected = [predict_alone("caption", scene=scene, max_length=64).text for scene in range(6)]

    async def ask(client: httpx.AsyncClient, number: int) -> str:
        response = await client.post("/v1/predict", json={"image": data_uri(number % 6), "task": "caption"})
        return response.json()["predictions"][0]["text"]

    async def ask_all(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(48)))

    with live_server() as live:
        assert asyncio.run(ask_all(live.url)) == expected * 8
