"""Images by URL: none without an allowed host, no way around it by redirects, limits on bytes and time."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from florence2.apps.serve.images.image_urls import fetch_image
from florence2.apps.serve.request_limits import RequestError
from tests.apps.serve.live_server import live_server, png, predict_alone


class ImageHost(BaseHTTPRequestHandler):
    """Answers by path: an image, redirects, an error, an endless or a slow body."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        redirects = {
            "/same": "/image.png",
            "/named": f"http://localhost:{port}/image.png",
            "/loop": "/loop",
            "/file": "file:///etc/passwd",
            "/metadata": "http://169.254.169.254/latest",
        }
        path = self.path.partition("?")[0]
        if path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[path])
            self.end_headers()
            return
        self.send_response(200 if path in ("/image.png", "/endless", "/slow") else 404)
        self.end_headers()
        try:
            if path == "/image.png":
                self.wfile.write(png())
            while path == "/endless":
                self.wfile.write(b"x" * 10_000)
            while path == "/slow":
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHost)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, hosts: tuple[str, ...] = ("127.0.0.1",), **options) -> bytes:
    return fetch_image(url, hosts, **{"max_bytes": 10**6, "timeout": 5} | options)


def test_allowed_host_and_its_own_redirect(host: str) -> None:
    assert fetch(f"{host}/image.png?size=2") == png()
    assert fetch(f"{host}/same") == png()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/named", "not fetched from `localhost`"),
        ("/metadata", "not fetched from `169.254.169.254`"),
        ("/file", "`file` URLs are not fetched"),
        ("/loop", "redirected more than 3 times"),
        ("/gone", "status 404"),
    ],
)
def test_redirects_and_errors(host: str, path: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        fetch(host + path)


def test_redirect_to_a_private_address_is_refused_even_of_an_allowed_host(host: str) -> None:
    with pytest.raises(RequestError, match="private address of `localhost`"):
        fetch(f"{host}/named", ("127.0.0.1", "localhost"))


def test_bytes_and_time_are_limited(host: str) -> None:
    with pytest.raises(RequestError, match="more than 50,000 bytes"):
        fetch(f"{host}/endless", max_bytes=50_000)
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"takes too long|cannot be fetched"):
        fetch(f"{host}/slow", timeout=0.3)
    assert time.monotonic() - start < 2
    with pytest.raises(RequestError, match="cannot be fetched"):
        fetch("http://127.0.0.1:1/a.png")
    with pytest.raises(RequestError, match="not valid"):
        fetch("http://127.0.0.1:x/a.png")


def test_server_fetches_from_allowed_domains_only(host: str) -> None:
    body = {"image": f"{host}/image.png", "task": "caption"}
    with live_server(media_domains=["127.0.0.1"]) as live, live.client() as client:
        value = client.post("/v1/predict", json=body).json()
        assert value["predictions"][0]["text"] == predict_alone("caption", max_length=64).text
        refused = client.post("/v1/predict", json={**body, "image": host.replace("127.0.0.1", "localhost") + "/a"})
        assert refused.status_code == 400
