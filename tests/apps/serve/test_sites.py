"""Which hosts and web pages a server answers, with and without a key: requests as browsers and proxies send them."""

import logging
import socket

import pytest

from florence2.apps.serve.site_check import SiteCheck
from florence2.cli.program import main
from tests.apps.serve.live_server import data_uri, live_server, png

OTHER_PAGE = {"origin": "http://evil.example"}
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


def post_form(client, headers: dict) -> int:
    """Send what a form of any web page may send without a question before it."""
    return client.post(
        "/v1/predict", files={"image": ("a.png", png())}, data={"max_length": "4"}, headers=headers
    ).status_code


def host_header(url: str) -> str:
    return url.removeprefix("http://")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.168.7.7", "localhost.evil.example:80", ""]
)
@pytest.mark.parametrize("path", ["/", "/v1/models", "/health", "/page/static/ask.js"])
def test_other_names_of_the_loopback_are_refused(server, host: str, path: str) -> None:
    with server.client() as client:
        response = client.get(path, headers={"host": host})
        assert response.status_code == 403
        assert "--allowed_hosts" in response.text
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.:1", "127.0.0.1:99", "[::1]:8000", "127.8.8.8", "app.localhost"]
)
def test_names_of_the_loopback_are_answered(server, host: str) -> None:
    with server.client() as client:
        assert client.get("/health", headers={"host": host}).status_code == 200


def test_a_load_balancer_may_name_no_host(server) -> None:
    address, port = host_header(server.url).split(":")
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "headers",
    [
        OTHER_PAGE,
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "https://localhost"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {**OTHER_PAGE, "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
def test_forms_of_other_pages_are_refused_before_any_work(server, headers: dict, caplog) -> None:
    images = server.service.default.engine.engine.stats.images
    with server.client() as client, caplog.at_level(logging.INFO, "florence2"):
        assert post_form(client, headers) == 403
        body = {"image": data_uri(), "max_length": 4}
        assert client.post("/v1/predict", json=body, headers=headers).status_code == 403
        assert (
            client.post("/api/generate", content=b"{}", headers=headers).json()["error"].startswith("the request comes")
        )
    assert server.service.default.engine.engine.stats.images == images
    assert "start the server with `--allowed_origins" in caplog.text


def test_the_own_page_and_programs_are_answered(server) -> None:
    with server.client() as client:
        assert post_form(client, {}) == 200
        assert post_form(client, {"origin": server.url, "sec-fetch-site": "same-origin"}) == 200
        # Behind a proxy that speaks https, or that names the server itself as the host.
        assert post_form(client, {"origin": server.url.replace("http:", "https:")}) == 200
        assert post_form(client, {"origin": "https://florence.example", "sec-fetch-site": "same-origin"}) == 200


def test_a_question_of_another_page_is_refused_with_the_reason(server, caplog) -> None:
    with server.client() as client, caplog.at_level(logging.INFO, "florence2"):
        response = client.options("/v1/chat/completions", headers={**OTHER_PAGE, **PREFLIGHT})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
        assert client.options("/v1/models").status_code == 405
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=OTHER_PAGE).headers
    assert "--allowed_origins http://evil.example" in caplog.text


def test_a_refusal_waits_for_the_body_so_that_it_is_not_lost_in_a_reset(server) -> None:
    address, port = host_header(server.url).split(":")
    head = "POST /v1/predict HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 200000\r\n\r\n"
    with socket.create_connection((address, int(port)), timeout=0.3) as connection:
        connection.sendall(head.encode())
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        connection.sendall(b" " * 200_000)
        received = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert received.startswith(b"HTTP/1.1 403")
    assert b"--allowed_hosts" in received


def test_allowed_hosts_and_origins() -> None:
    sites = SiteCheck(("Florence.example",), ("http://localhost:3000", "app://obsidian.md"))
    with live_server(sites=sites) as live, live.client() as client:
        for origin in sites.allowed_origins:
            page = {"origin": origin, "host": "florence.example", "sec-fetch-site": "cross-site"}
            preflight = client.options("/v1/chat/completions", headers={**page, **PREFLIGHT})
            assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, origin)
            response = client.get("/v1/models", headers=page)
            assert response.headers["access-control-allow-origin"] == origin
            assert post_form(client, page) == 200
        assert post_form(client, OTHER_PAGE) == 403
        assert client.get("/health", headers={"host": "other.example"}).status_code == 403
        assert client.get("/health").status_code == 200
    with live_server(sites=SiteCheck(("*",), ("*",))) as live, live.client() as client:
        assert post_form(client, {**OTHER_PAGE, "host": "any.example"}) == 200
        assert client.get("/health", headers=OTHER_PAGE).headers["access-control-allow-origin"] == "*"


def test_a_key_takes_the_place_of_the_checks() -> None:
    right = {"authorization": "Bearer k", "host": "florence.example", **OTHER_PAGE}
    with live_server(api_key="k") as live, live.client() as client:
        assert post_form(client, right) == 200
        assert post_form(client, {**right, "authorization": "Bearer x"}) == 401
        assert client.options("/v1/predict", headers={**OTHER_PAGE, **PREFLIGHT}).status_code == 403
    with live_server(api_key="k", sites=SiteCheck(("florence.example",))) as live, live.client() as client:
        assert post_form(client, right) == 200
        assert post_form(client, {**right, "host": "other.example"}) == 403


@pytest.mark.parametrize(
    "flags",
    [
        ["--allowed_origins", "http://localhost:3000/"],
        ["--allowed_origins", "localhost:3000"],
        ["--allowed_hosts", "http://florence.example"],
        ["--allowed_hosts", "florence.example:80"],
    ],
    ids=" ".join,
)
def test_what_no_request_can_name_is_refused(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["serve", "--model_path", "/no/such", "--port", "0", *flags]) == 2
    assert f"`{' '.join(flags)}` is not" in capsys.readouterr().err
