"""A real server on a free port of the loopback, in a thread of the test process, with the bundled model in float32."""

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import httpx
import uvicorn

import florence2
from florence2.apps.serve.app import create_app
from florence2.apps.serve.model_service import ModelService, ServedModel
from florence2.apps.serve.request_limits import RequestLimits
from florence2.demo.scenes import make_scene


@cache
def demo_model():
    return florence2.load("demo", dtype="float32", device="cpu")


@cache
def png(scene: int = 0) -> bytes:
    """Return an image of the kind that the bundled model knows."""
    encoded = io.BytesIO()
    make_scene(scene).render().save(encoded, "PNG")
    return encoded.getvalue()


def data_uri(scene: int = 0) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(scene)).decode()}"


def predict_alone(task: str, task_input: str = "", scene: int = 0, **generation) -> florence2.Prediction:
    """Predict with an engine of its own: what a server's answer must equal."""
    with florence2.Engine(*demo_model(), florence2.EngineConfig(florence2.GenerationConfig(**generation))) as engine:
        [prediction] = engine.run([florence2.Sample("image", png(scene), task, task_input)])
    return prediction


@dataclass
class LiveServer:
    url: str
    service: ModelService
    server: uvicorn.Server

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, **{"timeout": 60, **options})

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Wait until no request is in work and no slot is in use; fail where one remains."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pending = sum(model.engine.num_pending for model in self.service.models.values())
            if not pending and not self.service.num_requests:
                return
            time.sleep(0.02)
        raise AssertionError(f"{self.service.num_requests} requests and {pending} predictions are still in work")


@contextmanager
def live_server(
    limits: RequestLimits | None = None,
    models: dict[str, tuple] | None = None,
    trained_task: str | None = None,
    generation: florence2.GenerationConfig | None = None,
    **options,
) -> Iterator[LiveServer]:
    generation = generation or florence2.GenerationConfig(max_length=64)
    config = florence2.EngineConfig(generation, batch_size=8)
    served = [
        ServedModel(name, florence2.AsyncEngine(*model, config, max_pending=10_000), trained_task)
        for name, model in (models or {"demo": demo_model()}).items()
    ]
    service = ModelService(served, limits)
    app = create_app(service, generation=generation, **options)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield LiveServer(url, service, server)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the server did not end"
