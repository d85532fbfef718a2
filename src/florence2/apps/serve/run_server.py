"""The command `florence2 serve`: load the models, and answer requests until a signal comes."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2.config import RequestLimitSettings, ServeSettings
from florence2.errors import MissingPackageError, OptionError
from florence2.log import count_noun, logger
from florence2.settings_io import parse_pairs

if TYPE_CHECKING:
    from florence2 import ModelSource
    from florence2.apps.serve.model_service import ModelService, ServedModel
    from florence2.apps.serve.request_limits import RequestLimits
    from florence2.apps.serve.site_check import SiteCheck

API_KEY = "FLORENCE2_API_KEY"
_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_KEEP_ALIVE_SECONDS = 15
_MAX_CONNECTIONS = 4096


def main(settings: ServeSettings) -> int:
    """Run `florence2 serve`; return 0 after a signal has ended it, with all open requests answered."""
    _require_packages()
    from florence2.apps.serve.site_check import SiteCheck

    api_key = os.environ.get(API_KEY) or None
    address = settings.address
    _check_address(address.host, api_key)
    sites = SiteCheck(address.allowed_hosts, address.allowed_origins)
    request_limits(settings.limits)  # refuses wrong ones before anything is loaded
    with _bind(address.host, address.port) as listener:
        _run(settings, sites, api_key, listener)
    return 0


def _run(settings: ServeSettings, sites: SiteCheck, api_key: str | None, listener: socket.socket) -> None:
    from florence2 import GenerationConfig
    from florence2.apps.page import ask_routes
    from florence2.apps.serve.app import create_app
    from florence2.apps.serve.web_server import address_of, make_web_server

    limits = settings.limits
    service = load_service(settings)
    app = create_app(
        service,
        generation=GenerationConfig(max_length=limits.max_length, num_beams=limits.num_beams),
        api_key=api_key,
        sites=sites,
        media_domains=settings.address.allowed_media_domains,
        routers=[ask_routes.router],
    )

    def log_start() -> None:
        url, names = address_of(listener), ", ".join(service.models)
        logger.info(f"serving {names} at {url} ; the page is {url}/ and the API is described at {url}/docs")

    def log_end() -> None:
        if number := service.num_requests:
            logger.info(f"{count_noun(number, 'open request')} will be answered; Ctrl-C again ends at once")

    make_web_server(
        app,
        log_start,
        log_end,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(limits.request_timeout) + 1,
    ).run(sockets=[listener])
    logger.info("the server has ended")


def load_service(settings: ServeSettings) -> ModelService:
    """Load the base and the adapters; the adapters use the memory of the base where their weights are equal."""
    from florence2 import ModelSource, reuse_weights
    from florence2.apps.serve.model_service import ModelService

    names = {_model_name(settings.model.model_path): settings.model.model_path}
    for name, path in parse_pairs("--adapter", settings.model.adapter).items():
        if name in names or ":" in name or not name:
            raise OptionError(f"`--adapter {name}={path}` has a name that cannot be used", "choose another name")
        names[name] = path
    models: list[ServedModel] = []
    base: Any = None
    sources = [ModelSource.resolve(path, settings.hub, settings.compute.dtype) for path in names.values()]
    for name, source in zip(names, _set_base(sources, settings.model.base_model), strict=True):
        model, processor = source.load(settings.compute.device)
        if base is None:
            base = model
        else:
            size = sum(each.numel() * each.element_size() for each in model.parameters())
            saved = reuse_weights(model, base)
            added = max(size - saved, 0)  # weights of the base that occur twice are saved twice
            logger.info(f"model {name}: {added / 2**20:.0f} MiB beside the base, of {size / 2**20:.0f}")
        models.append(_serve_model(name, model, processor, source, settings))
    logger.info(f"models: {', '.join(names)}; device {base.device}, dtype {str(base.dtype).removeprefix('torch.')}")
    return ModelService(models, request_limits(settings.limits))


def _set_base(sources: list[ModelSource], base_model: str | None) -> list[ModelSource]:
    """Replace the base of every adapter by the one that the flag names."""
    if base_model is None:
        return sources
    if not any(source.is_adapter for source in sources):
        raise OptionError("none of the models is an adapter and takes a base", "remove `--base_model`")
    return [replace(source, base=base_model) if source.is_adapter else source for source in sources]


def _serve_model(name: str, model: Any, processor: Any, source: Any, settings: ServeSettings) -> ServedModel:
    from florence2 import AsyncEngine, EngineConfig, GenerationConfig, read_run_metadata
    from florence2.apps.serve.model_service import ServedModel

    limits = settings.limits
    config = EngineConfig(
        GenerationConfig(max_length=limits.max_length, num_beams=limits.num_beams), batch_size=limits.batch_size
    )
    metadata = read_run_metadata(source.folder)
    most = limits.max_queue * limits.max_predictions
    engine = AsyncEngine(model, processor, config, max_pending=most)
    return ServedModel(name, engine, metadata.task if metadata else None)


def request_limits(settings: RequestLimitSettings) -> RequestLimits:
    """Read the limits of requests from the flags."""
    from florence2.apps.serve.request_limits import RequestLimits

    return RequestLimits(
        max_request_bytes=settings.max_request_mb * 2**20,
        max_image_pixels=settings.max_image_pixels,
        max_images=settings.max_images,
        max_predictions=settings.max_predictions,
        max_queue=settings.max_queue,
        image_timeout=settings.image_timeout,
        request_timeout=settings.request_timeout,
    )


def _model_name(path: str) -> str:
    """Name a model by the last part of its path or hub id."""
    return Path(path).resolve().name if Path(path).is_dir() else path.rstrip("/").rpartition("/")[2]


def _check_address(host: str, api_key: str | None) -> None:
    """Refuse to be reached by other machines without a key."""
    if api_key is None and not _is_loopback(host):
        raise OptionError(
            f"`--host {host}` lets other machines use the server, and there is no API key",
            f"set the environment variable {API_KEY}, or pass `--host 127.0.0.1`",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    """Bind the address before the models are loaded, so that a port in use is an error at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError(f"cannot listen on {host}:{port}: {reason}", "pass another `--host` or `--port`") from None
    return listener


def _require_packages() -> None:
    for package in _PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingPackageError(
                f"the server needs `{package.replace('_', '-')}`", "run `pip install 'florence2[serve]'`"
            ) from error
