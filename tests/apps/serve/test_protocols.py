"""The answers of a live server, protocol by protocol, equal those of an engine of its own."""

import gzip
import json

import pytest

from tests.apps.serve.live_server import data_uri, png, predict_alone


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def chat(words: str, seed: int = 0, **options) -> dict:
    content = [{"type": "text", "text": words}, {"type": "image_url", "image_url": {"url": data_uri(seed)}}]
    return {"messages": [{"role": "user", "content": content}], **options}


def test_chat_answers_the_caption_with_its_task_and_counts(client) -> None:
    response = client.post("/v1/chat/completions", json=chat("Describe this image in detail."))
    expected = predict_alone("detailed_caption", max_length=64)
    value = response.json()
    assert response.headers["x-florence2-task"] == "detailed_caption"
    assert value["choices"][0]["message"]["content"] == expected.text
    assert value["choices"][0]["finish_reason"] == "stop"
    assert value["object"] == "chat.completion"
    assert value["model"] == "demo"
    assert value["usage"]["completion_tokens"] == expected.num_tokens
    assert value["usage"]["total_tokens"] == value["usage"]["prompt_tokens"] + expected.num_tokens
    assert value["usage"]["prompt_tokens"] > 10


def test_positions_are_json(client) -> None:
    value = client.post("/v1/chat/completions", json=chat("<OD>")).json()
    expected = predict_alone("od", max_length=64).answer
    assert json.loads(value["choices"][0]["message"]["content"]) == expected.to_dict()


def test_stream_sends_the_text_in_pieces_as_tokens_come(client) -> None:
    body = chat("caption", stream=True, stream_options={"include_usage": True})
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    expected = predict_alone("caption", max_length=64)
    assert "".join(delta.get("content", "") for delta in deltas) == expected.text
    assert sum(bool(delta.get("content")) for delta in deltas) > expected.num_tokens // 2
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == expected.num_tokens
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


@pytest.mark.parametrize("is_stream", [False, True], ids=["at once", "stream"])
def test_a_text_ends_before_its_stop_words(client, is_stream: bool) -> None:
    expected = predict_alone("caption", max_length=64).text
    first, second, third, *_ = expected.split()
    options = {"stop": ["nothing of it", f"{second} {third}"], "max_tokens": 3}  # 3 tokens: the words are inside
    response = client.post("/v1/chat/completions", json=chat("caption", stream=is_stream, **options))
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith(("data: {", "{"))]
    choices = [json.loads(line)["choices"][0] for line in lines]
    pieces = [choice.get("message", choice.get("delta")).get("content", "") for choice in choices]
    assert "".join(pieces) == f"{first} "
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("is_form", [True, False], ids=["multipart", "json"])
def test_predict_answers_rows_of_captions_jsonl(client, is_form: bool) -> None:
    tasks = ["caption", "od+region_to_category"]
    if is_form:
        files = [("image", (f"{seed}.png", png(seed))) for seed in (0, 1)]
        response = client.post("/v1/predict", files=files, data={"task": tasks})
    else:
        response = client.post("/v1/predict", json={"images": [data_uri(0), data_uri(1)], "task": tasks})
    rows = response.json()["predictions"]
    names = ["0.png", "1.png"] if is_form else ["image-1", "image-2"]
    for seed, name in enumerate(names):
        of_image = [row for row in rows if row["file_name"] == name]
        assert of_image[0]["text"] == predict_alone("caption", scene=seed, max_length=64).text
        expected = predict_alone("od", scene=seed, max_length=64).answer
        assert of_image[1]["answer"]["bboxes"] == expected.bboxes
        assert of_image[1]["answer"]["labels"] == expected.labels
        assert of_image[1]["answer"]["scores"] == pytest.approx(expected.scores, abs=1e-4)
        regions = [row for row in of_image if row["task"] == "<REGION_TO_CATEGORY>"]
        assert len(regions) == len(of_image[1]["answer"]["bboxes"])
        assert regions[0]["text"] == predict_alone("region_to_category", regions[0]["input"], seed, max_length=64).text


def test_models_and_health_are_listed(client) -> None:
    names = [row["id"] for row in client.get("/v1/models").json()["data"]]
    assert names[0] == "demo"
    assert "demo:od" in names
    assert client.get("/v1/models/demo:od").json()["id"] == "demo:od"
    assert client.get("/v1/models/gpt-5").status_code == 404
    assert client.get("/health").json()["status"] == "ok"
    assert "florence2_predictions_total" in client.get("/metrics").text
    assert "serves demo" in client.get("/").text
    assert client.get("/openapi.json").json()["info"]["title"] == "florence2"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions", "/v1/predict"])
def test_json_is_read_whatever_type_the_client_names(client, path: str, kind: str) -> None:
    """`curl -d` names a form, some clients of Ollama's protocol name nothing."""
    message = {"role": "user", "content": "caption", "images": [data_uri()]}
    body = {"images": [data_uri()], "task": "caption"}
    if path != "/v1/predict":  # which takes no keys of other protocols
        body |= {"messages": [message], "prompt": "caption", "stream": False}
    response = client.post(path, content=json.dumps(body), headers={"content-type": kind} if kind else {})
    assert response.status_code == 200
    assert predict_alone("caption", max_length=64).text in response.text


PLAIN = data_uri().partition(",")[2]


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{PLAIN.rstrip('=')}",
        f"data:image/png;charset=utf-8;base64,{PLAIN.replace('+', '-').replace('/', '_').rstrip('=')}",
        f"data:image/png;base64,{PLAIN.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"  data:base64,{PLAIN}\n",
    ],
    ids=["unpadded", "url-safe", "escaped", "bare"],
)
def test_base64_is_read_as_clients_write_it(client, uri: str) -> None:
    response = client.post("/v1/predict", json={"image": uri, "task": ""})
    assert response.json()["predictions"][0]["text"] == predict_alone("caption", max_length=64).text


def test_paths_are_read_as_clients_write_them(client) -> None:
    expected = predict_alone("caption", max_length=64).text
    for path in ("//v1/chat/completions", "/v1/chat/completions/"):
        response = client.post(f"{client.base_url}{path}", json=chat("caption", max_tokens=-1))
        assert response.json()["choices"][0]["message"]["content"] == expected, path
    for path in ("/", "/health", "/api/tags", "/api/version/"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b""), path
    assert "there is no `/v1/v1/models`; see /docs" in client.get("/v1/v1/models").json()["error"]["message"]
    assert client.get("/api/pull").json()["error"].startswith("there is no `/api/pull`")


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (gzip.compress(b"{}"), {"content-encoding": "gzip"}, 415, "compressed"),
        (b"{'a': 1}", {}, 400, "the body is not JSON: Expecting property name"),
        ('{"a": "ü"}'.encode("latin-1"), {}, 400, "not JSON in UTF-8"),
    ],
    ids=["gzip", "quotes", "latin-1"],
)
def test_bodies_that_cannot_be_read_say_why(client, body: bytes, headers: dict, status: int, reason: str) -> None:
    response = client.post("/v1/chat/completions", content=body, headers=headers)
    assert (response.status_code, reason in response.json()["error"]["message"]) == (status, True), response.text
