"""The command `florence2 mcp`: load the model, and answer the client on stdin and stdout until it leaves."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from florence2.config import McpSettings
from florence2.errors import MissingPackageError
from florence2.log import logger

INSTRUCTIONS = (
    "Describes images with Florence-2. Every tool takes the path of an image inside the folders of the server; boxes "
    "are in pixels from the upper left corner."
)


def main(settings: McpSettings) -> int:
    """Run `florence2 mcp`; return 0 once the client has closed the connection."""
    if find_spec("mcp") is None:
        raise MissingPackageError("`florence2 mcp` needs the package `mcp`", "pip install 'florence2[mcp]'")
    from florence2 import Engine, EngineConfig, GenerationConfig, ModelSource
    from florence2.apps.mcp.allowed_roots import AllowedRoots
    from florence2.apps.mcp.image_tools import ImageTools

    roots = AllowedRoots.resolve(settings.root)
    weights = settings.model
    source = ModelSource.resolve(weights.model_path, settings.hub, settings.compute.dtype, weights.base_model)
    generation = GenerationConfig(max_length=settings.max_length, num_beams=settings.num_beams)
    model, processor = source.load(settings.compute.device)
    with Engine(model, processor, EngineConfig(generation)) as engine:
        server = create_server(ImageTools(engine, roots))
        folders = ", ".join(map(str, roots.folders))
        logger.info(f"serving {weights.model_path} to the MCP client on stdin; images from {folders}")
        server.run("stdio")
    return 0


def create_server(tools: Any) -> Any:
    """Register the tools at a server of the MCP SDK."""
    from mcp.server import MCPServer
    from mcp.types import ToolAnnotations

    from florence2 import __version__

    server: Any = MCPServer("florence2", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")
    annotations = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (tools.caption, tools.detect, tools.ocr, tools.ground):
        server.add_tool(tool, annotations=annotations)
    return server
