"""File names of images: the extensions of formats that can be decoded, and the packages that decode the others."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

_PLAIN = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff")
# Formats whose decoder may be missing: the package to install, and the modules that decode them.
_OPTIONAL = {
    "avif": ("pillow>=11.3", ("PIL._avif",)),
    "heic": ("pillow-heif", ("pillow_heif", "pi_heif")),
    "heif": ("pillow-heif", ("pillow_heif", "pi_heif")),
    "jxl": ("pillow-jxl-plugin", ("pillow_jxl", "jxlpy")),
}


def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


IMAGE_EXTENSIONS = frozenset(
    [f".{name}" for name in _PLAIN]
    + [f".{name}" for name, (_, modules) in _OPTIONAL.items() if any(map(_is_installed, modules))]
)


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of an image format that can be decoded, in any letter case."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS  # noqa: PTH122 - pathlib is slow for a million names


def missing_package(name: str) -> str:
    """Return the package that decodes files of this name, or "" if none is needed or it is installed."""
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return "" if extension in IMAGE_EXTENSIONS else _OPTIONAL.get(extension[1:], ("",))[0]


@cache
def register_optional_decoders() -> bool:
    """Register the installed decoders of heic and jxl; return whether there are any."""
    installed = [name for _, names in _OPTIONAL.values() for name in names if name[:3] != "PIL" and _is_installed(name)]
    for name in installed:
        module = import_module(name)
        if hasattr(module, "register_heif_opener"):
            module.register_heif_opener()
    return bool(installed)
