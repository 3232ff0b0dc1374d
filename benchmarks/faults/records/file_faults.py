"""Faults of files: of one with annotations or results, and of images."""

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

Fault = Callable[[Path, Random], None]


def replaced(path: Path, content: bytes) -> None:
    """Write a file that is not linked with others."""
    path.unlink()
    path.write_bytes(content)


def _bytes(make: Callable[[bytes, Random], bytes]) -> Fault:
    return lambda path, random: replaced(path, make(path.read_bytes(), random))


def _flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 3, 20])):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _in_place(make: Callable[[Path], object]) -> Fault:
    """Put something else in the place of a file."""

    def fault(path: Path, random: Random) -> None:
        path.unlink()
        make(path)

    return fault


def _link_to(target: str) -> Fault:
    return _in_place(lambda path: path.symlink_to(target))


def _moved_out(path: Path, random: Random) -> None:
    """Put a link in the place of an image, which is outside the folder now."""
    shutil.move(path, path.parent.parent / path.name)
    path.symlink_to(random.choice([Path("..") / path.name, path.parent.parent.resolve() / path.name]))


_NO_FILES: dict[str, Fault] = {
    "missing": lambda path, random: path.unlink(),
    "empty": _bytes(lambda content, random: b""),
    "cut off": _bytes(lambda content, random: content[: random.randrange(len(content))]),
    "bits flipped": _bytes(_flipped),
    "a folder": _in_place(Path.mkdir),
    "a FIFO": _in_place(os.mkfifo),
    "a link to /dev/zero": _link_to("/dev/zero"),
    "a link to /dev/null": _link_to("/dev/null"),
    "a link to itself": _in_place(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _link_to("nowhere"),
}


def _twice(content: bytes, random: Random) -> bytes:
    """Give an object in JSON a key that it has."""
    text = content.decode(json.detect_encoding(content), "surrogatepass")
    places = [place for place, letter in enumerate(text) if letter == "{" and text[place + 1 :].lstrip()[0] == '"']
    place = random.choice(places[:1] + places)
    key = text[place + 1 :].lstrip().split('"')[1]
    return f'{text[: place + 1]}"{key}": {random.choice(["1", "null", "[]"])}, {text[place + 1 :]}'.encode(
        "utf-8", "surrogatepass"
    )


JSON_FILES: dict[str, Fault] = {
    **_NO_FILES,
    "not UTF-8": _bytes(lambda content, random: content.replace(b"a", b"\xff", 1)),
    "nested 100,000 deep": _bytes(lambda content, random: b"[" * 100_000 + b"]" * random.choice([0, 100_000])),
    "nested in a field": _bytes(lambda content, random: b'{"images": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    "a key comes twice": _bytes(_twice),
    "a list at the top": _bytes(lambda content, random: b"[" + content + b"]"),
    "an object at the top": _bytes(lambda content, random: b'{"a": ' + content + b"}"),
    "a number of 5,000 digits": _bytes(lambda content, random: b'{"images": ' + b"1" * 5000 + b"}"),
    "no JSON": _bytes(
        lambda content, random: random.choice([b"<xml/>", b"1", b"null", b"{}", b"[]", b"\0" * 99, b"{"])
    ),
    "an image": _bytes(lambda content, random: _saved(Image.new("RGB", (9, 9)))),
}


def _saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _header(width: int, height: int) -> bytes:
    """Return a PNG file that says it is as large as that, with hardly any content."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000))))
    chunks = b"".join(_chunk(*part) for part in (*parts, (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _image(make: Callable[[Image.Image, Random], bytes]) -> Fault:
    def fault(path: Path, random: Random) -> None:
        with Image.open(path) as image:
            image.load()
        replaced(path, make(image, random))

    return fault


def _text_bomb(image: Image.Image, random: Random) -> bytes:
    whole = _saved(image)
    return whole[:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * 2**20))) + whole[33:]


_LARGE = [(20_000, 20_000), (13_000, 13_000), (2**31 - 1, 2**31 - 1), (65_000, 2_000), (64, 10**6), (0, 0), (64, 0)]
IMAGES: dict[str, Fault] = {
    **_NO_FILES,
    "a short header": _bytes(lambda content, random: content[: random.randrange(1, 60)]),
    "no image": _bytes(
        lambda content, random: random.choice([b"no image", b"%PDF-1.4", b"\xff\xd8\xff", bytes(10**5)])
    ),
    "a program of PostScript": _bytes(
        lambda content, random: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    ),
    "a header of another size": _bytes(lambda content, random: _header(*random.choice(_LARGE))),
    "a decompression bomb": _bytes(
        lambda content, random: _saved(Image.new("1", random.choice([(20_000, 20_000), (13_000, 13_000)])))
    ),
    "a bomb of text": _image(_text_bomb),
    "another size": _image(lambda image, random: _saved(image.resize((random.choice([32, 63, 65]), 64)))),
    "floats": _image(lambda image, random: _saved(Image.fromarray(np.zeros((64, 64), np.float32)), "TIFF")),
    "integers of 32 bits": _image(lambda image, random: _saved(Image.fromarray(np.zeros((64, 64), np.int32)), "TIFF")),
    "a link out of the folder": _moved_out,
}


def _turned(image: Image.Image, random: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = random.choice([0, 1, 2, 3, 6, 8, 9, 77])  # the annotated size is the stored one: the image stays
    return _saved(image, exif=exif)


def _animated(image: Image.Image, random: Random) -> bytes:
    return _saved(image, save_all=True, append_images=[image.rotate(90)], duration=99)


def _linked_inside(path: Path, random: Random) -> None:
    path.rename(path.with_name("moved.png"))
    path.symlink_to("moved.png")


SAME_PIXELS: dict[str, Fault] = {
    "as BMP": _image(lambda image, random: _saved(image, "BMP")),
    "as TIFF": _image(lambda image, random: _saved(image, "TIFF")),
    "as WebP without loss": _image(lambda image, random: _saved(image, "WEBP", lossless=True, exact=True)),
    "with an orientation": _image(_turned),
    "animated": _image(_animated),
    "with transparency": _image(lambda image, random: _saved(image.convert("RGBA"))),
    "a link within the folder": _linked_inside,
    "damaged EXIF": _image(lambda image, random: _saved(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
}
"""Changes of an image after which it has the same pixels."""
OTHER_PIXELS: dict[str, Fault] = {
    "grey": _image(lambda image, random: _saved(image.convert("L"))),
    "grey of 16 bits": _image(
        lambda image, random: _saved(Image.fromarray(np.asarray(image)[..., 0].astype("<u2") * 257))
    ),
    "CMYK": _image(lambda image, random: _saved(image.convert("CMYK"), "JPEG")),
    "a palette": _image(lambda image, random: _saved(image.convert("P"))),
    "black and white": _image(lambda image, random: _saved(image.convert("1"))),
    "JPEG": _image(lambda image, random: _saved(image, "JPEG")),
}
"""Changes of an image after which it can be read as well, as another one."""
