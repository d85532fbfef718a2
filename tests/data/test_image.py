import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from florence2.data.folders.image_names import IMAGE_EXTENSIONS, is_image_name
from florence2.data.image import ImageError, image_size, open_image

RED, WHITE = (200, 30, 40), (255, 255, 255)


def corner(image: Image.Image) -> tuple[int, int, int]:
    return image.getpixel((0, 0))


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def is_close(pixels, expected, tolerance=6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixels, expected, strict=True))


# --- image formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "gif", "tif", "TIFF", "avif"])
def test_every_common_format_opens(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (20, 10), RED))
    image = open_image(path)
    assert image.image.mode == "RGB"
    assert image.size == image.image.size == image_size(path) == (20, 10)
    assert is_close(corner(image.image), RED)


def test_bytes_and_pillow_images_open(tmp_path):
    image = Image.new("RGB", (20, 10), RED)
    path = save(tmp_path / "a.png", image)
    for source in (path, path.read_bytes(), image):
        assert corner(open_image(source).image) == RED
        assert image_size(source) == (20, 10)


def transparent_palette() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, *RED])
    image.putpixel((0, 0), 1)
    image.info["transparency"] = 0  # except the corner
    return image


@pytest.mark.parametrize(
    ("image", "first", "last"),
    [
        (Image.new("L", (4, 4), 77), (77, 77, 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), WHITE, WHITE),
        (Image.new("RGBA", (4, 4), (*RED, 0)), WHITE, WHITE),  # invisible
        (Image.new("RGBA", (4, 4), (*RED, 255)), RED, RED),  # opaque
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), (127, 127, 127), (127, 127, 127)),  # blended with white
        (Image.new("LA", (4, 4), (0, 0)), WHITE, WHITE),
        (transparent_palette(), RED, WHITE),
    ],
    ids=["grey", "one bit", "clear", "opaque", "half", "grey alpha", "palette"],
)
def test_modes_become_rgb_on_white(tmp_path, image, first, last):
    for source in (image, save(tmp_path / "a.png", image)):
        pixels = open_image(source).image
        assert pixels.mode == "RGB"
        assert corner(pixels) == first
        assert pixels.getpixel((3, 3)) == last


def test_rgb_png_with_a_transparent_colour(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (4, 4), RED), transparency=RED)
    assert corner(open_image(path).image) == WHITE


def test_palette_without_transparency(tmp_path):
    path = save(tmp_path / "a.gif", Image.new("RGB", (4, 4), RED).quantize(4))
    assert is_close(corner(open_image(path).image), RED)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    # Adobe's JPEGs hold the inverted values; Pillow writes them that way, a TIFF holds them plainly.
    path = save(tmp_path / f"a.{suffix}", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    assert is_close(corner(open_image(path).image), (255, 0, 0))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(1, 256).repeat(4, 0)
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, Image.fromarray(ramp))
        grey = np.asarray(open_image(path).image)[0, :, 0]
        assert np.array_equal(grey, np.arange(256))


def test_big_endian_16_bit_grey():
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 257 * 10, 65535))
    assert np.asarray(open_image(image).image)[0, :, 0].tolist() == [10, 255]


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        (np.array([[0, 257 * 9, 65535]], np.int32), [0, 9, 255]),  # 16 bits in 32
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),  # no known range
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),  # unit range
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),  # bytes as floats
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1]], np.float32), [0, 0, 255]),
        (np.array([[7e9, 7e9, 7e9]], np.float32), [0, 0, 0]),  # flat
    ],
)
def test_deep_grey(tmp_path, values, grey):
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    for source in (path, Image.fromarray(values)):
        assert np.asarray(open_image(source).image)[0, :, 0].tolist() == grey


def test_16_bit_colour_png(tmp_path):
    rows = b"\x00" + struct.pack(">3H", 200 * 257, 30 * 257, 40 * 257) * 2

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert corner(open_image(data).image) == RED


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert is_close(corner(open_image(path).image), RED)


# --- orientation -----------------------------------------------------------------------------------------------------


def marked() -> Image.Image:
    """Make an image of 32 x 16 pixels, red at the top left, blue at the top right, black elsewhere."""
    image = Image.new("RGB", (32, 16))
    image.paste(RED, (0, 0, 8, 8))
    image.paste((0, 0, 250), (24, 0, 32, 8))
    return image


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_exif(tmp_path, suffix, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = marked() if orientation == 1 else marked().transpose(undo[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / f"a.{suffix}", stored, exif=exif, quality=95)
    for min_size in (None, (8, 4), (1, 1)):
        image = open_image(path, min_size=min_size)
        assert image.size == image_size(path) == (32, 16)
        pixels = image.image.resize((32, 16), Image.Resampling.NEAREST)
        assert is_close(pixels.getpixel((4, 4)), RED, 40)
        assert is_close(pixels.getpixel((28, 4)), (0, 0, 250), 60)
        assert is_close(pixels.getpixel((4, 12)), (0, 0, 0), 40)
    assert open_image(path).image.size == (32, 16)


def test_damaged_exif_is_ignored(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (16, 16), RED), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fxx")
    assert is_close(corner(open_image(path).image), RED)
    assert image_size(path) == (16, 16)


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_unknown_orientation_is_ignored(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / "a.jpg", Image.new("RGB", (16, 8), RED), exif=exif)
    assert open_image(path).size == (16, 8)


# --- reduced decoding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_size", "decoded"),
    [
        (None, (1001, 600)),
        ((1001, 600), (1001, 600)),
        ((600, 400), (1001, 600)),  # 1/2 would be too small
        ((500, 300), (501, 300)),
        ((300, 300), (501, 300)),  # the shorter side decides
        ((200, 120), (251, 150)),
        ((64, 64), (126, 75)),
        ((1, 1), (126, 75)),  # 1/8 is the smallest scale
        ((5000, 5000), (1001, 600)),
    ],
)
def test_jpeg_is_decoded_at_the_smallest_sufficient_scale(tmp_path, min_size, decoded):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (1001, 600), RED))
    image = open_image(path, min_size=min_size)
    assert image.image.size == decoded
    assert image.size == (1001, 600)


def test_reduced_decoding_measures_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = save(tmp_path / "a.jpg", Image.new("RGB", (800, 400), RED), exif=exif)
    assert open_image(path, min_size=(200, 400)).image.size == (200, 400)
    assert open_image(path, min_size=(400, 200)).image.size == (400, 800)  # 1/2 would be 200 wide


def test_reduced_decoding_is_close_to_exact(tmp_path):
    smooth = Image.radial_gradient("L").resize((800, 800), Image.Resampling.BICUBIC).convert("RGB")
    path = save(tmp_path / "a.jpg", smooth, quality=95)
    exact, reduced = (
        np.asarray(open_image(path, min_size=size).image.resize((96, 96), Image.Resampling.BICUBIC)).astype(int)
        for size in (None, (96, 96))
    )
    assert np.abs(exact - reduced).max() <= 6


def test_opened_pillow_image_is_not_changed(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (800, 800), RED))
    with Image.open(path) as image:
        assert open_image(image, min_size=(8, 8)).image.size == (800, 800)
        assert image.size == (800, 800)


# --- unreadable images -----------------------------------------------------------------------------------------------


def image_error(source, message: str, **options) -> ImageError:
    with pytest.raises(ImageError, match=message) as caught:
        open_image(source, **options)
    assert "\n" not in caught.value.what
    return caught.value


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, fraction):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    assert str(path) in image_error(path, "a.*cannot be read|is not an image").what
    image_error(path, "a.*cannot be read|is not an image", min_size=(8, 8))


@pytest.mark.parametrize("junk", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", bytes(1000)])
def test_files_that_are_no_images_are_named(tmp_path, junk):
    path = tmp_path / "notes.jpg"
    path.write_bytes(junk)
    assert image_error(path, "is not an image that can be read|cannot be read").what.startswith(str(path))
    image_error(junk, "^an image in memory")
    image_error(junk, "^row 7 ", name="row 7")


def damaged(path: Path, seed: int) -> bytes:
    """Return the bytes of a file, 12 of them replaced at random."""
    rng = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[rng.integers(0, len(data), 12)] = rng.integers(0, 256, 12, dtype=np.uint8)
    return data.tobytes()


def test_damaged_bytes_open_or_raise_image_errors(tmp_path):
    opened, rejected = [], []
    for seed in range(40):
        suffix = ("jpg", "png", "webp", "gif", "tif")[seed % 5]
        path = save(tmp_path / f"a.{suffix}", Image.radial_gradient("L").convert("RGB").resize((40, 40)))
        try:
            opened.append(open_image(damaged(path, seed)).image)
        except ImageError as error:
            rejected.append(error.what)
    assert len(opened) >= 5
    assert {(image.mode, image.size) for image in opened} <= {("RGB", (40, 40))}
    assert len(rejected) >= 5
    assert all(what.startswith("an image in memory ") for what in rejected)


def test_missing_folder_and_unreadable_paths(tmp_path):
    image_error(tmp_path / "none.jpg", "none.jpg does not exist")
    image_error(tmp_path, "is a folder, not an image")
    if os.geteuid():
        secret = save(tmp_path / "secret.png", Image.new("RGB", (4, 4)))
        secret.chmod(0)
        image_error(secret, "cannot be read: permission denied")


def bomb(side: int) -> bytes:
    """Make a PNG whose header claims side x side pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    end = b"\x00\x00\x00\x00IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + end


def test_decompression_bomb_is_rejected(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(20_000))
    assert image_error(path, r"bomb.png has more than 178,956,970 pixels").hint == "resize it first"
    with pytest.raises(ImageError, match="has more than"):
        image_size(path)


def test_large_image_below_the_limit_has_no_warning(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(bomb(10_000))  # 100 million pixels, where Pillow warns
    assert image_size(path) == (10_000, 10_000)


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg is damaged", "remove it")))
    assert (error.what, error.hint) == ("a.jpg is damaged", "remove it")


def test_missing_decoder_is_in_the_hint(tmp_path):
    for suffix, package in (("heic", "pillow-heif"), ("jxl", "pillow-jxl-plugin")):
        if f".{suffix}" in IMAGE_EXTENSIONS:
            continue
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(b"\x00\x00\x00\x18ftypheic" if suffix == "heic" else b"\xff\x0a")
        assert package in image_error(path, "is not an image").hint


@pytest.mark.parametrize(
    ("name", "is_image"),
    [("a.jpg", True), ("A.JPG", True), ("b.c.TiFf", True), ("a.txt", False), ("jpg", False), ("a.jpg.txt", False)],
)
def test_image_names(name, is_image):
    assert is_image_name(name) == is_image


def test_opening_an_image_imports_no_torch():
    code = "import sys; import florence2.data.sample; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_open_files_are_closed(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    images = [open_image(path) for _ in range(8)]
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after == before
    assert len(images) == 8


@pytest.mark.parametrize("min_size", [None, (8, 8)])
def test_damaged_png_is_an_error_and_not_black(tmp_path: Path, min_size: tuple[int, int] | None) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((90, 70), 60).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:41] + b"\xff" * (len(data) - 61) + data[-20:])
    assert image_size(path) == (90, 70)  # from the header
    with pytest.raises(ImageError, match=r"a\.png cannot be read"):
        open_image(path, min_size=min_size)


@pytest.mark.parametrize("is_late", [False, True])
def test_png_is_upright_wherever_its_exif_is(tmp_path: Path, is_late: bool) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "a.png"
    Image.effect_noise((90, 70), 60).save(path, exif=exif)
    if is_late:
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert image_size(path) == open_image(path).size == open_image(path, min_size=(8, 8)).size == (70, 90)
