"""Predicts the test images of other programs, which are in their source archives, and reports how each ended.

    pip download --no-binary pillow --no-deps pillow        # or: apt-get source --download-only pillow tiff libpng1.6
    python -m tests.faults.foreign_images demo *.tar.*

Every image is predicted, whatever its extension: what the listing of a folder would leave out gets the extension
`.png` in addition. Prints a JSON object: how many were read, how many refused and why, and the peak memory in MiB.
"""

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from florence2.data.folders.image_names import is_image_name
from tests.faults.test_odd_files import read_rows

_NAMES = """
apng avif bdf blp bmp bufr cur dcx dds dib dpx emf eps exr fit fits flc fli fpx ftc ftu gbr gif grib h5 hdf
hdr heic heif icns ico iff im iptc j2k jfif jng jp2 jpc jpe jpeg jpg jpm jpx jxl mic miff mng mpo msp palm pam
pbm pcd pcx pdf pfm pgm pic pict png pnm ppm ps psd ptif pxr qoi ras rgb rgba sgi spider sun tga tif tiff tim
wal wbmp webp wmf xbm xcf xpm xv
"""
EXTENSIONS = frozenset(_NAMES.split())
LIMIT = 1800.0  # seconds for all images together; a decoder that hangs ends after one minute


def main(model: str, archives: list[Path]) -> dict[str, Any]:
    """Predict the images of archives; assert that each has one line."""
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name) / "images", Path(name) / "o.jsonl"
        images = extract_images(archives, folder)
        words = [
            "--model_path",
            model,
            "--input_path",
            folder,
            "--output_path",
            output,
            "--recursive",
            "--max_length",
            "3",
        ]
        command = [sys.executable, "-m", "florence2", "predict", *map(str, words)]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT, check=False)
        assert run.returncode in (0, 1), run.stderr[-3000:]
        rows = read_rows(output)
        counts = Counter(row["file_name"] for row in rows)
        assert counts == Counter(images), (counts - Counter(images), Counter(images) - counts)
        reasons = Counter(reason(row, images) for row in rows if row.get("error"))
        return {
            "images": len(images),
            "read": len(images) - reasons.total(),
            "refused": reasons.total(),
            "reasons": dict(reasons.most_common()),
            "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
            "foreign_log_lines": foreign_lines(run.stderr),
        }


def extract_images(archives: list[Path], folder: Path) -> list[str]:
    """Write the images of archives into a folder, each content once, and return their paths in it."""
    contents: set[bytes] = set()
    names = []
    for archive in (each for each in archives if each.suffix != ".asc"):  # a signature, which `*.tar.*` matches, too
        with tarfile.open(archive) as tar:
            for member in (each for each in tar if each.isfile()):
                extension = member.name.rpartition(".")[2].lower()
                file = tar.extractfile(member) if extension in EXTENSIONS else None
                content = file.read() if file else b""
                digest = hashlib.sha256(content).digest()
                if file is None or digest in contents:
                    continue
                contents.add(digest)
                parts = [part.lstrip(".") for part in member.name.split("/") if part.strip(".")]
                name = "/".join([archive.name.partition("_")[0], *parts])
                path = folder / (name if is_image_name(name) else f"{name}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                names.append(path.relative_to(folder).as_posix())
    return names


def reason(row: dict[str, Any], images: list[str]) -> str:
    """Return the error of a row without the name of the image and without numbers."""
    assert os.path.basename(row["file_name"]) in row["error"], row  # noqa: PTH119
    text = row["error"].replace(row["file_name"], "IMAGE")
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"\S*IMAGE", "IMAGE", text))[:160]


def foreign_lines(log: str) -> list[str]:
    """Return the lines of a log that are not of this project."""
    numbers = r"\d[\d,]* (predictions? |failed; |of [\d,]+ predictions)"
    ours = rf"time: |{numbers}|waiting |loading |.* s so far|.*ignored"
    return [line for line in log.splitlines() if line.strip() and not re.match(ours, line)]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], [Path(each) for each in sys.argv[2:]]), indent=1))
