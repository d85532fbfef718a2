"""The ask view of `florence2 serve` in a real browser, on the bundled model."""

import io
import json

from PIL import Image

import florence2
from florence2.apps.page import ask_routes
from tests.apps.page.live_page import wait_until
from tests.apps.serve.live_server import demo_model, live_server, png, predict_alone

FILES = [{"name": f"{scene}.png", "mimeType": "image/png", "buffer": png(scene)} for scene in (1, 2)]


def test_images_are_answered_by_boxes_at_their_position(page) -> None:
    expected = predict_alone("od", scene=1)
    with live_server(routers=[ask_routes.router]) as server:
        page.goto(server.url)
        wait_until(page, "document.querySelectorAll('#task option').length === 15")
        page.set_input_files("#files", FILES)
        page.wait_for_selector("#answer:not([hidden])")
        assert page.locator("#text").inner_text() == predict_alone("caption", scene=1).text
        page.select_option("#task", "od")
        wait_until(page, f"document.querySelectorAll('.canvas .shape').length === {len(expected.answer)}")
        row = json.loads(page.locator("#json").inner_text())
        assert row["text"] == expected.text
        assert [item.split("\n")[0] for item in page.locator("#objects li").all_inner_texts()] == row["answer"][
            "labels"
        ]
        image = page.locator(".canvas .stage img").bounding_box()
        shape_box = page.locator(".canvas .shape").first.bounding_box()
        width = page.evaluate("document.querySelector('.canvas .stage img').naturalWidth")
        left = (shape_box["x"] - image["x"]) / image["width"] * width
        assert abs(left - row["answer"]["bboxes"][0][0]) < 4
        page.evaluate("""() => {
            const slider = document.getElementById("threshold");
            slider.value = 1;
            slider.dispatchEvent(new Event("input"));
        }""")
        assert page.locator(".canvas .shape").count() == 0
        assert "ms" in page.locator("#status").inner_text()


def test_regions_are_dragged_and_errors_are_shown(page) -> None:
    with live_server(routers=[ask_routes.router]) as server:
        page.goto(server.url)
        page.click("#run")
        assert page.locator("#error").inner_text() == "Drop an image first."
        page.set_input_files("#files", FILES[:1])
        page.wait_for_selector("#answer:not([hidden])")
        page.select_option("#task", "region_to_category")
        box = page.locator(".canvas .stage img").bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
        page.mouse.up()
        assert len(page.input_value("#input").split(",")) == 4
        page.click("#run")
        wait_until(page, "document.getElementById('json').textContent.includes('REGION_TO_CATEGORY')")
        page.fill("#input", "nonsense")
        page.click("#run")
        wait_until(page, "document.getElementById('error').textContent.includes('not a region')")
    page.click("#run")
    wait_until(page, "document.getElementById('error').textContent === 'The server does not answer.'")


def test_files_that_the_browser_cannot_show_are_answered_and_others_named(page) -> None:
    tiff = io.BytesIO()
    Image.open(io.BytesIO(png(1))).save(tiff, "TIFF")
    with live_server(routers=[ask_routes.router]) as server:
        page.goto(server.url)
        wait_until(page, "document.querySelectorAll('#task option').length === 15")
        page.set_input_files("#files", [{"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}])
        assert page.locator("#error").inner_text() == "a.pdf is not an image."
        page.select_option("#task", "od")
        page.set_input_files("#files", [{"name": "a.tif", "mimeType": "image/tiff", "buffer": tiff.getvalue()}])
        page.wait_for_selector("#answer:not([hidden])")
        number = len(predict_alone("od", scene=1).answer)
        assert page.locator("#text").inner_text() == f"{number} object{'s' * (number != 1)}"
        wait_until(page, "document.getElementById('unshown').textContent === 'This browser cannot show a.tif.'")
        assert not page.locator("#view .stage").is_visible()
        page.select_option("#task", "region_to_category")
        assert page.locator("#status").inner_text() == ""  # the time of the answer before
        Image.new("RGB", (90, 400)).save(tall := io.BytesIO(), "PNG")
        page.set_input_files("#files", [{"name": "tall.png", "mimeType": "image/png", "buffer": tall.getvalue()}])
        wait_until(page, "document.querySelector('#view img').naturalHeight === 400")
        shown = page.locator("#view img").bounding_box()
        assert abs(shown["width"] / shown["height"] - 90 / 400) < 0.01


def test_a_model_answers_its_own_prompt_and_another_model_again(page) -> None:
    prompt = "What is shown, in a word?"
    models = {"own": demo_model(), "copy": demo_model()}
    with live_server(routers=[ask_routes.router], models=models, trained_task=prompt) as server:
        page.goto(server.url)
        wait_until(page, "document.querySelectorAll('#task option').length === 16")
        page.set_input_files("#files", FILES[:1])
        page.wait_for_selector("#answer:not([hidden])")
        assert json.loads(page.locator("#json").inner_text())["task"] == prompt
        page.select_option("#task", "caption")
        wait_until(page, "document.getElementById('json').textContent.includes('<CAPTION>')")
        page.select_option("#model", "copy")
        wait_until(page, f"document.getElementById('json').textContent.includes({prompt!r})")


def test_the_page_asks_for_the_key_and_other_clients_get_text(page) -> None:
    with live_server(routers=[ask_routes.router], api_key="secret") as server:
        with server.client() as client:
            assert client.get("/", headers={"accept": "text/html,*/*"}).headers["content-type"].startswith("text/html")
            plain = client.get("/")
            assert plain.text.startswith(f"florence2 {florence2.__version__} serves demo")
            assert client.head("/").status_code == 200
            assert client.get("/page/tasks").status_code == 401
            assert client.get("/page/static/ask.html").status_code == 404
            assert client.get("/page/static/..%2F..%2Frun_review.py").status_code in (401, 404)
        page.goto(server.url)
        page.wait_for_selector("#key-field:not([hidden])")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        wait_until(page, "document.querySelectorAll('#task option').length === 15")


def test_the_api_page_shows_each_route_and_sends_requests_without_other_servers(page) -> None:
    with live_server(routers=[ask_routes.router], api_key="k3y") as server:
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(f"{server.url}/docs")
        wait_until(page, "document.querySelectorAll('details').length > 10")
        with server.client() as client:
            paths = client.get("/openapi.json").json()["paths"]
        assert page.locator("details").count() == sum(map(len, paths.values()))
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/predict", "/api/generate", "/api/chat"):
            operation = page.locator("details", has=page.locator(f"summary code:text-is('{path}')"))
            operation.locator("summary").click()
            page.fill("#key", "")
            operation.locator("button").click()
            wait_until(page, "document.querySelector('details[open] .answer').textContent.startsWith('401')")
            page.fill("#key", "k3y")
            operation.locator("button").click()
            wait_until(page, "document.querySelector('details[open] .answer').textContent.startsWith('200')")
            assert path in operation.locator("pre").last.inner_text()
            operation.locator("summary").click()
        assert all(address.startswith((server.url, "data:")) for address in addresses)
