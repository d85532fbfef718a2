"""Real clients, and the bodies that other programs send (the table of caption clients), against a live server."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from http.client import HTTPConnection

import ollama
import openai
import pytest
from pydantic import BaseModel

from tests.apps.serve.live_server import data_uri, png, predict_alone

BASE64 = base64.b64encode(png()).decode()
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "caption": {"type": "string"},
        "alt_text": {"type": "string"},
        "keywords": {"type": "array", "items": {"type": "string"}},
        "rating": {"type": ["integer", "null"]},
    },
    "required": ["title", "caption", "alt_text", "keywords", "rating"],
    "additionalProperties": False,
}


class FoundObject(BaseModel):
    label: str
    bbox: list[float]


class Photo(BaseModel):
    title: str
    objects: list[FoundObject]


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def text(task: str) -> str:
    return predict_alone(task, max_length=64).text


def labels() -> list[str]:
    return list(dict.fromkeys(predict_alone("od", max_length=64).answer.labels))


def user(words: str, detail: str = "auto") -> list:
    image = {"type": "image_url", "image_url": {"url": data_uri(), "detail": detail}}
    return [{"role": "user", "content": [{"type": "text", "text": words}, image]}]


def test_openai_plain(client) -> None:
    answer = client.chat.completions.create(model="demo", messages=user("What is in this image?"), max_tokens=300)
    assert answer.choices[0].message.content == text("caption")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 3
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=user("Describe it"), max_tokens=3)
    assert raw.headers["x-florence2-task"] == "detailed_caption"
    assert raw.parse().choices[0].finish_reason == "length"
    assert client.models.list().data[0].id == "demo"


def test_openai_stream(client) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="demo:more_detailed_caption", messages=user("x"), stream=True, stream_options=options
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == text("more_detailed_caption")
    assert sum(map(bool, pieces)) > 5
    assert chunks[-1].usage.completion_tokens > 5


def test_openai_json_schema(client) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "photo", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model="demo", messages=user("Describe in detail"), response_format=schema)
    value = json.loads(answer.choices[0].message.content)
    assert value == {
        "title": text("caption"),
        "caption": text("detailed_caption"),
        "alt_text": text("detailed_caption"),
        "keywords": labels(),
        "rating": None,
    }


def test_openai_responses(client) -> None:
    parts = [{"type": "input_text", "text": "Describe"}, {"type": "input_image", "image_url": data_uri()}]
    request = {"model": "demo", "input": [{"role": "user", "content": parts}]}
    answer = client.responses.create(**request, instructions="Be kind.")
    assert (answer.output_text, answer.status) == (text("detailed_caption"), "completed")
    assert answer.usage.output_tokens > 3
    short = client.responses.create(**request, max_output_tokens=2)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    parsed = client.responses.parse(**request, text_format=Photo).output_parsed
    assert (parsed.title, [each.label for each in parsed.objects]) == (text("caption"), labels())
    with client.responses.stream(**request) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(pieces) == stream.get_final_response().output_text == text("detailed_caption")
    assert len(pieces) > 5
    with pytest.raises(openai.BadRequestError, match="hold no image"):
        client.responses.create(model="demo", input="hello")


def test_openai_errors(client) -> None:
    with pytest.raises(openai.BadRequestError, match="hold no image"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}])
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with pytest.raises(openai.BadRequestError, match=r"images are not fetched from `example\.com`"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": [part]}])


def test_litellm(server) -> None:
    code = """
import json, sys, litellm
url, messages = json.load(sys.stdin)
answer = litellm.completion(model="openai/demo", api_base=url, api_key="any", messages=messages, num_retries=0)
print(answer.choices[0].message.content)
"""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}  # no network
    words = [sys.executable, "-c", code]  # its own process: it leaves sockets and event loops open
    request = json.dumps([f"{server.url}/v1", user("caption")])
    run = subprocess.run(words, input=request, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == text("caption")


def test_ollama_client(server) -> None:
    with ollama.Client(host=server.url) as client:
        check_ollama(client)


def check_ollama(client) -> None:
    assert client.list().models[0].model == "demo:latest"
    assert client.show("demo:latest").capabilities == ["completion", "vision"]
    answer = client.generate(model="demo", prompt="Describe this image", images=[png()])
    assert answer.response == text("detailed_caption")
    assert answer.done
    assert answer.eval_count > 3
    pieces = list(client.generate(model="demo:caption", prompt="", images=[png()], stream=True))
    assert "".join(piece.response for piece in pieces) == text("caption")
    assert len(pieces) > 5
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    message = {"role": "user", "content": "What text is in the image?", "images": [png()]}
    assert client.chat(model="demo", messages=[message]).message.content == text("ocr")
    filled = client.chat(model="demo", messages=[{**message, "content": "Describe"}], format=SCHEMA)
    assert json.loads(filled.message.content)["keywords"] == labels()
    with pytest.raises(ollama.ResponseError, match="not an image that can be read"):
        client.generate(model="demo", prompt="", images=[base64.b64encode(b"no image at all" * 9).decode()])


def test_ollama_async_client(server) -> None:
    async def ask() -> str:
        client = ollama.AsyncClient(host=server.url)
        message = {"role": "user", "content": "caption", "images": [png()]}
        stream = await client.chat(model="demo", messages=[message], stream=True)
        pieces = [piece.message.content async for piece in stream]
        await client._client.aclose()
        return "".join(pieces)

    assert asyncio.run(ask()) == text("caption")


def post(http, path: str, body: dict, **headers) -> str:
    response = http.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_sillytavern_sends_the_image_beside_an_empty_content(http) -> None:
    body = {"messages": [{"role": "user", "content": [], "image_url": data_uri()}], "stream": False, "max_tokens": 250}
    headers = {"Authorization": "Bearer ", "Content-Type": "application/json"}  # httpx refuses the empty key
    connection = HTTPConnection(http.base_url.host, http.base_url.port)
    connection.request("POST", "/chat/completions", json.dumps(body), headers)
    value = json.loads(connection.getresponse().read())
    connection.close()
    assert value["choices"][0]["message"]["content"] == text("caption")


def test_imageindexer_sends_no_model_and_options_of_its_own(http) -> None:
    assert http.get("/health").status_code == 200
    parts = [{"type": "text", "text": "Describe"}, {"type": "image_url", "image_url": {"url": data_uri()}}]
    body = {
        "messages": [{"role": "system", "content": "You see."}, {"role": "user", "content": parts}],
        "max_tokens": 250,
        "temperature": 0,
        "top_p": 1,
        "top_k": 100,
        "min_p": 0.05,
        "rep_pen": 1.01,
        "use_default_badwordsids": False,
    }
    assert post(http, "/v1/chat/completions", body) == text("detailed_caption")
    properties = {"Description": {"type": "string"}, "Keywords": {"type": "array", "items": {"type": "string"}}}
    body["response_format"] = {"type": "json_object", "schema": {"type": "object", "properties": properties}}
    value = json.loads(post(http, "/v1/chat/completions", body))
    assert value == {"Description": text("detailed_caption"), "Keywords": labels()}


def test_lightroom_sends_the_image_in_a_message_of_its_own(http) -> None:
    body = {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "You write metadata."},
            {"role": "user", "content": [{"type": "text", "text": "Describe the photo in great detail."}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_uri()}}]},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": SCHEMA, "strict": True}},
    }
    value = json.loads(post(http, "/v1/chat/completions", body))
    assert value["caption"] == text("more_detailed_caption")
    assert set(value) == set(SCHEMA["properties"])


def test_comfyui_and_x_infer_spell_the_image_in_two_ways(http) -> None:
    for detail in ("auto", "low", "high"):
        assert post(http, "/v1/chat/completions", {"messages": user("caption", detail)}) == text("caption")
    part = {"type": "image_url", "image_url": data_uri()}
    body = {"model": "florence2:od", "messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]}
    assert (
        json.loads(post(http, "/v1/chat/completions", body))["labels"]
        == predict_alone("od", max_length=64).answer.labels
    )


def test_chat_page_asks_again_about_an_earlier_image(http) -> None:
    messages = [*user("Describe"), {"role": "assistant", "content": "a frog"}, {"role": "user", "content": "caption"}]
    assert post(http, "/v1/chat/completions", {"messages": messages}) == text("caption")


def test_ray_data_sends_concurrent_requests_and_reads_usage(http, server) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            calls = [client.chat.completions.create(model="demo", messages=user("caption")) for _ in range(12)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    assert asyncio.run(ask_all()) == [text("caption")] * 12


def test_ollama_clients_of_photo_programs(http) -> None:
    assert http.get("/api/tags").json()["models"][0]["name"] == "demo:latest"
    assert http.get("/api/version").json()["version"]
    body = {"model": "llava:7b", "prompt": "Describe this image", "images": [BASE64], "stream": False}
    value = http.post("/api/generate", json=body).json()
    assert (value["response"], value["done"], value["done_reason"]) == (text("detailed_caption"), True, "stop")
    value = http.post("/api/generate", json={**body, "format": "json", "options": {"temperature": 0}}).json()
    assert json.loads(value["response"]) == {"caption": text("detailed_caption")}
    lines = http.post("/api/generate", json={**body, "stream": True}).text.splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == text("detailed_caption")
    assert http.post("/api/generate", json={"model": "demo"}).json()["done_reason"] == "load"
    assert http.post("/api/chat", json={"model": "demo", "messages": []}).json()["done"]
    missing = http.post("/api/chat", json={"messages": [{"role": "user", "content": "hi"}]})
    assert missing.status_code == 400
    assert isinstance(missing.json()["error"], str)


def test_several_images_are_answered_each_where_the_answer_can_say_so(http) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(seed)}} for seed in (0, 1)]
    body = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "caption"}]}]}
    captions = [predict_alone("caption", scene=seed, max_length=64).text for seed in (0, 1)]
    assert post(http, "/v1/chat/completions", body) == f"Image 1: {captions[0]}\nImage 2: {captions[1]}"
    schema = {"type": "array", "items": {"type": "object", "properties": {"caption": {"type": "string"}}}}
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "each", "schema": schema}}
    assert json.loads(post(http, "/v1/chat/completions", body)) == [{"caption": caption} for caption in captions]
    body["response_format"] = {"type": "json_object"}
    refused = http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "room for one" in refused.json()["error"]["message"]


def test_sampling_follows_the_seed(http) -> None:
    body = {"messages": user("caption"), "temperature": 4.0}
    first, again = (post(http, "/v1/chat/completions", {**body, "seed": 3}) for _ in range(2))
    assert first == again == predict_alone("<CAPTION>", max_length=64, do_sample=True, temperature=4.0, seed=3).text
    assert len({post(http, "/v1/chat/completions", {**body, "seed": seed}) for seed in range(6)}) > 1
