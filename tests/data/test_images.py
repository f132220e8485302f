"""Images: their headers are judged before their pixels cost anything, and damage is seen."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lira_jax import foreign
from lira_jax.data import images
from lira_jax.errors import InputError
from tests.data.synthetic import png


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def large_png(side: int) -> bytes:
    """A black grey square, compressed by hand, as an array of it would be slow to make."""
    row = b"\0" + bytes(side)
    packer, parts = zlib.compressobj(1), []
    for _ in range(side):
        parts.append(packer.compress(row))
    pixels = b"".join(parts) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + crc

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(images, "_pixels", refuse)


def refusal(*examples: tuple[bytes, int, str], count: int) -> str:
    with pytest.raises(InputError) as caught:
        images.stack(examples, count, "train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("no_pixels")
def test_more_pixels_than_memory_are_refused_before_one_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foreign, "memory", lambda: 3 * 10**9)
    image = (large_png(9000), 0, "row 0")
    assert "needs 4.2 GB, and this machine has 3.0 GB" in refusal(image, count=40)
    # And beyond any memory where the number of rows is invented.
    assert "give fewer or smaller images" in refusal((png(PIXELS), 0, "row 0"), count=2**62)


@pytest.mark.usefixtures("no_pixels")
def test_an_image_beyond_pillows_limit_is_refused_by_its_header() -> None:
    message = refusal((large_png(9600), 0, "row 0"), count=1)
    assert "row 0: image cannot be decoded" in message
    assert "decompression bomb" in message


PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def test_another_size_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = images._pixels
    monkeypatch.setattr(images, "_pixels", lambda *args: decoded.append(1) or original(*args))
    examples = [(png(PIXELS), 0, "row 0"), (large_png(2000), 0, "row 1")]
    assert "row 1: image is (2000, 2000, 1), the first was (8, 8, 3)" in refusal(*examples, count=2)
    assert len(decoded) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_the_usual_kinds_of_images_are_read(kind: str) -> None:
    image = Image.fromarray(PIXELS)
    assert images.decode_image(saved(image, kind), "here").shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "JPEG2000"])
def test_no_other_reader_of_pillow_is_started(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import PIL.EpsImagePlugin

    def ghostscript(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", ghostscript)
    content = saved(Image.fromarray(PIXELS), kind)
    with pytest.raises(InputError, match="here: image cannot be decoded"):
        images.decode_image(content, "here")


def test_a_byte_flipped_in_a_png_is_refused_or_changes_nothing() -> None:
    whole, expected = png(PIXELS), PIXELS
    refusals = 0
    for place in range(len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :]
        try:
            np.testing.assert_array_equal(images.decode_image(flipped, "here"), expected)
        except InputError:
            refusals += 1
    assert refusals > 0.9 * len(whole)


def test_as_many_images_as_are_announced_are_read_no_more_and_no_fewer() -> None:
    examples = [(png(PIXELS), 0, f"row {row}") for row in range(3)]
    assert "row 2: one more than the 2 that are announced" in refusal(*examples, count=2)
    assert "train: 3 images, where 4 are announced" in refusal(*examples, count=4)


@pytest.mark.parametrize("label", [2**31, -(2**40), 2**64 - 1])
def test_labels_beyond_32_bits_are_refused(label: int) -> None:
    assert f"label {label} is beyond 32 bits" in refusal((png(PIXELS), label, "row 0"), count=1)
