"""Other web sites in a real browser: what their pages can do with a server on this machine, and under which flag."""

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from florence2.apps.page import ask_routes
from florence2.apps.serve.site_check import SiteCheck
from tests.apps.page.live_page import serve_app, wait_until
from tests.apps.serve.live_server import data_uri, live_server

PAGE = """<form id="form" method="post" enctype="multipart/form-data"><input name="images" id="images"></form>"""
SEND = """async ([url, image, mode]) => {
    const body = new FormData();
    body.append("images", image);
    body.append("max_length", "4");
    const options = { method: "POST", body, mode };
    try { return (await fetch(url + "/v1/predict", options)).status; } catch (error) { return String(error); }
}"""
CHAT = """async ([url, image]) => {
    const content = [{ type: "image_url", image_url: { url: image } }];
    const body = JSON.stringify({ messages: [{ role: "user", content }], max_tokens: 4 });
    const headers = { "content-type": "application/json", authorization: "Bearer any" };
    try {
        const response = await fetch(url + "/v1/chat/completions", { method: "POST", body, headers });
        return (await response.json()).object;
    } catch (error) { return String(error); }
}"""


def other_site() -> FastAPI:
    app = FastAPI()
    app.get("/")(lambda: HTMLResponse(PAGE))
    return app


def test_a_page_of_another_site_can_make_no_work(page) -> None:
    with live_server(routers=[ask_routes.router]) as live, serve_app(other_site()) as site:
        stats = live.service.default.engine.engine.stats
        for address in (site, site.replace("127.0.0.1", "evil.example")):
            page.goto(address)
            assert "Failed to fetch" in page.evaluate(SEND, [live.url, data_uri(), "cors"])
            assert page.evaluate(SEND, [live.url, data_uri(), "no-cors"]) in (0, "TypeError: Failed to fetch")
            assert "Failed to fetch" in page.evaluate(CHAT, [live.url, data_uri()])
            with page.expect_navigation():  # a form that leads to the server itself
                page.evaluate(
                    """([url, image]) => {
                        document.getElementById("images").value = image;
                        document.getElementById("form").action = url + "/v1/predict";
                        document.getElementById("form").submit();
                    }""",
                    [live.url, data_uri()],
                )
            assert "a web page of another origin" in page.inner_text("body")
        assert (stats.images, live.service.num_requests) == (0, 0)
        # A name that its owner points at this machine.
        page.goto(live.url.replace("127.0.0.1", "rebound.example"))
        assert "--allowed_hosts rebound.example" in page.inner_text("body")
        page.goto(live.url)
        wait_until(page, "document.querySelector('form, select') !== null")
        assert page.evaluate(SEND, ["", data_uri(), "cors"]) == 200
        assert stats.images == 1


def test_a_front_end_that_a_flag_names_may_chat(page) -> None:
    with serve_app(other_site()) as site, live_server(sites=SiteCheck(allowed_origins=(site,))) as live:
        page.goto(site)
        assert page.evaluate(CHAT, [live.url, data_uri()]) == "chat.completion"
        assert page.evaluate(SEND, [live.url, data_uri(), "cors"]) == 200
