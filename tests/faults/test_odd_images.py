"""Images of unusual size or orientation, and consoles that are not UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from florence2.data.image import ImageError, image_size, open_image
from florence2.data.sample import Prediction, Sample
from florence2.model.answer import Answer
from florence2.model.tasks import OutputType
from florence2.results import annotated_images
from tests.faults.test_odd_files import PREDICT, run, save_images

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def test_jpeg_beyond_the_limit_of_pixels_is_decoded_at_a_reduced_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # cases B13
    path = tmp_path / "a.jpg"
    Image.new("RGB", (1600, 1200), "red").save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # refused are more than a million
    opened = open_image(path, min_size=(100, 100))
    assert (opened.size, opened.image.size) == ((1600, 1200), (200, 150))
    assert open_image(path.read_bytes(), min_size=(100, 100)).image.size == (200, 150)
    assert image_size(path) == (1600, 1200)
    with pytest.raises(ImageError, match="has more than 1,000,000 pixels; set FLORENCE2_MAX_IMAGE_PIXELS"):
        open_image(path)
    monkeypatch.setattr(annotated_images, "_REDUCED_SIZE", (700, 500))
    writer = annotated_images.AnnotatedImageWriter(str(tmp_path / "drawn"), [Sample("a.jpg", path, "caption")])
    boxes = Answer.from_dict({"bboxes": [[0, 0, 1600, 1200]], "labels": ["all"]}, OutputType.BOXES)
    annotated = writer.write(Prediction("a.jpg", "<OD>", answer=boxes))
    assert annotated is not None
    assert image_size(annotated) == (800, 600)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)  # more than twice the limit before it is reduced
    with pytest.raises(ImageError, match="has more than 800,000 pixels"):
        open_image(path, min_size=(100, 100))


def test_eps_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {canary}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(tmp_path / "gs"))
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ImageError, match=r"a\.png cannot be read: it is EPS, a program"):
        open_image(path)
    assert not canary.exists()


def test_other_image_beyond_the_limit_is_an_error_until_the_limit_is_raised(tmp_path: Path) -> None:  # cases B13
    Image.new("1", (20000, 10000)).save(tmp_path / "a.png")
    code = (
        "import sys; from pathlib import Path; from florence2.data.image import *; print(image_size(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "has more than 178,956,970 pixels; set FLORENCE2_MAX_IMAGE_PIXELS to read it" in refused.stderr
    environment = {**os.environ, "FLORENCE2_MAX_IMAGE_PIXELS": "250000000"}
    assert (
        subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
        == "(20000, 10000)\n"
    )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_orientation_of_xmp_alone_is_ignored_as_in_browsers(tmp_path: Path, suffix: str) -> None:  # cases B12
    path = tmp_path / f"a.{suffix}"
    image = Image.new("RGB", (40, 20))
    if suffix == "jpg":
        image.save(path, xmp=XMP)
    else:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        image.save(path, pnginfo=info)
    with Image.open(path) as opened:
        assert opened.getexif().get(274) == 6, "Pillow itself takes it"
        assert open_image(opened).size == (20, 40), "as the caller's own use of Pillow"
    with Image.open(path) as opened:
        assert open_image(opened).size == (40, 20)
        assert "xmp" in " ".join(opened.info).lower()
    assert open_image(path).size == image_size(path) == (40, 20)


def save_captioned(folder: Path) -> Path:
    save_images(folder, "猫.jpg", "é.jpg", "😀.jpg")
    (folder / "猫.jpg").write_bytes(b"no image")
    for name in ("猫", "é", "😀"):
        (folder / f"{name}.txt").write_text("a caption")
    return folder


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_data_check_prints_in_any_encoding(tmp_path: Path, encoding: str) -> None:  # cases B15
    folder = save_captioned(tmp_path / "photos")
    as_json = run("data", "check", folder, "--json", PYTHONIOENCODING=encoding)
    assert "猫.jpg" in json.dumps(json.loads(as_json.stdout.decode("utf-8")), ensure_ascii=False)
    as_text = run("data", "check", folder, PYTHONIOENCODING=encoding)
    assert (as_json.returncode, as_text.returncode) == (1, 1)
    assert b"\\u732b.jpg" in as_text.stdout


@pytest.mark.long
def test_predict_writes_json_to_a_stdout_in_another_encoding(tmp_path: Path) -> None:  # cases B15
    folder = save_captioned(tmp_path / "photos")
    result = run(*PREDICT, "--input_path", folder, "--output_path", "-", PYTHONIOENCODING="cp1252")
    assert result.returncode == 1, result.stderr
    names = {json.loads(line)["file_name"] for line in result.stdout.decode("utf-8").splitlines()}
    assert names == {"猫.jpg", "é.jpg", "😀.jpg"}
    assert b"1 failed; the first" in result.stderr
