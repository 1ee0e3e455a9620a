"""Image files that no library writes: ICC profiles, TIFFs of any bands and bits, and raw photographs."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# -- ICC profiles ------------------------------------------------------------------------------------------------------

D50 = np.array([0.9642, 1, 0.8249])
D65 = (0.3127, 0.3290)

SPACES: dict[str, tuple[list[tuple[float, float]], tuple[float, float], float | None]] = {
    "sRGB": ([(0.64, 0.33), (0.3, 0.6), (0.15, 0.06)], D65, None),
    "Display P3": ([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)], D65, None),
    "Adobe RGB (1998)": ([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], D65, 2.19921875),
    "ProPhoto RGB": ([(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)], (0.3457, 0.3585), 1.8),
}
"""Chromaticities of red, green and blue and of white, and the exponent of the curve; None: the curve of sRGB."""

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(name: str) -> np.ndarray:
    """The matrix from linear RGB to XYZ with white D50."""
    primaries, white, _ = SPACES[name]
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    full = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ D50) / (_BRADFORD @ full)) @ _BRADFORD
    return adapt @ (columns * np.linalg.solve(columns, full))


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, 0, 1)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def converted(name: str, levels: np.ndarray) -> np.ndarray:
    """The plain formula: levels [..., 3] of a space, 0 to 255, as levels of sRGB."""
    exponent = SPACES[name][2]
    linear = srgb_to_linear(levels / 255) if exponent is None else (levels / 255) ** exponent
    return np.round(255 * linear_to_srgb(linear @ (np.linalg.inv(to_xyz("sRGB")) @ to_xyz(name)).T))


def profile(space: bytes, tags: Mapping[bytes, bytes], *, kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 with these tags."""
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, kind, space, connection)
    return (header + bytes(12) + b"acsp" + bytes(28) + _fixed(D50)).ljust(128, b"\0") + table + body


def _fixed(values: Any) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def xyz(values: Any) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def description(name: str) -> bytes:
    text = name.encode() + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)


def curve(exponent: float | None) -> bytes:
    if exponent is None:
        return (
            b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed((2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
        )
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256))


def rgb_profile(name: str, described: str | None = None) -> bytes:
    """The profile of one of `SPACES`."""
    columns, exponent = to_xyz(name), SPACES[name][2]
    tags = {b"desc": description(described or name), b"wtpt": xyz(D50)}
    tags |= {colour + b"XYZ": xyz(columns[:, number]) for number, colour in enumerate((b"r", b"g", b"b"))}
    return profile(b"RGB ", tags | {colour + b"TRC": curve(exponent) for colour in (b"r", b"g", b"b")})


def grey_profile(exponent: float) -> bytes:
    tags = {b"desc": description(f"Grey {exponent}"), b"wtpt": xyz(D50), b"kTRC": curve(exponent)}
    return profile(b"GRAY", tags)


def cmyk_profile(colours: Any) -> bytes:
    """The profile of a press, from `colours`: ink of 0 or 1 [16, 4] → sRGB levels [16, 3]."""
    inks = np.stack(np.meshgrid(*[(0, 1)] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    points = (srgb_to_linear(np.asarray(colours(inks)) / 255) @ to_xyz("sRGB").T) / D50
    x, y, z = np.where(points > 216 / 24389, np.cbrt(points), (24389 / 27 * points + 16) / 116).T
    lab = np.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], axis=-1)
    ramp = bytes(range(256))
    table = np.clip(np.round(lab), 0, 255).astype(np.uint8).tobytes()
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + _fixed(np.eye(3).ravel()) + ramp * 4 + table + ramp * 3
    tags = {b"desc": description("Press"), b"wtpt": xyz(D50), b"A2B0": lut}
    return profile(b"CMYK", tags, kind=b"prtr", connection=b"Lab ")


# -- TIFF --------------------------------------------------------------------------------------------------------------

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 10: 8}


def _packed(kind: int, values: Any, order: str) -> bytes:
    if kind in (1, 2, 7):
        return bytes(values)
    if kind in (5, 10):
        code = "II" if kind == 5 else "ii"
        return b"".join(struct.pack(order + code, round(value * 10000), 10000) for value in values)
    return struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)


def directory(tags: Mapping[int, tuple[int, Any]], place: int, order: str = "<") -> bytes:
    """A directory of tags (type, values) that begins at `place`, followed by the values that do not fit into it."""
    entries, body, behind = b"", b"", place + 2 + 12 * len(tags) + 4
    for number, (kind, values) in sorted(tags.items()):
        content = _packed(kind, values, order)
        entries += struct.pack(order + "HHI", number, kind, len(content) // _SIZES[kind])
        if len(content) > 4:
            entries += struct.pack(order + "I", behind + len(body))
            body += content + bytes(len(content) % 2)
        else:
            entries += content.ljust(4, b"\0")
    return struct.pack(order + "H", len(tags)) + entries + bytes(4) + body


def tiff(
    pixels: np.ndarray, *, photometric: int = 2, extra: Sequence[int] | None = None, planar: bool = False,
    order: str = "<", form: int = 1, bits: int | None = None, width: int | None = None, deflated: bool = False,
    tags: Mapping[int, tuple[int, Any]] | None = None,
) -> bytes:  # fmt: skip
    """A TIFF with one strip, or one for each plane.

    Args:
        pixels: [height, width] or [height, width, bands].
        photometric: 0 white is zero, 1 black is zero, 2 RGB, …
        extra: Meaning of each band beyond the colours: 0 unspecified, 1 premultiplied opacity, 2 opacity.
        planar: Whether the bands are stored one after another.
        order: "<" or ">", the byte order.
        form: 1 unsigned, 2 signed, 3 floating point.
        bits: Bits of a value, if they differ from those of `pixels`.
        width: Width of the image, if it differs.
        deflated: Whether the strips are compressed.
        tags: Further tags, as type and values.
    """
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    stored = np.moveaxis(pixels, -1, 0) if planar and bands > 1 else pixels
    stored = stored.astype(stored.dtype.newbyteorder(order))
    strips = [plane.tobytes() for plane in stored] if planar and bands > 1 else [stored.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    every: dict[int, tuple[int, Any]] = {
        256: (4, [width or pixels.shape[1]]), 257: (4, [pixels.shape[0]]),
        258: (3, [bits or 8 * pixels.itemsize] * bands),
        259: (3, [8 if deflated else 1]), 262: (3, [photometric]), 273: (4, [0] * len(strips)),
        277: (3, [bands]), 278: (4, [pixels.shape[0]]),
        279: (4, [len(strip) for strip in strips]), 284: (3, [2 if planar else 1]), 339: (3, [form] * bands),
        **({} if extra is None else {338: (3, list(extra))}), **(tags or {}),
    }  # fmt: skip
    start = 8 + len(directory(every, 8, order))
    every[273] = (4, [start + sum(map(len, strips[:number])) for number in range(len(strips))])
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "I", 8)
        + directory(every, 8, order)
        + b"".join(strips)
    )


def dng(
    levels: tuple[int, int, int] = (8000, 16000, 4000), size: tuple[int, int] = (64, 48), orientation: int = 1,
    *, corner: tuple[int, int, int] | None = None, dng_tag: bool = True,
) -> bytes:  # fmt: skip
    """A raw photograph of one colour behind a magenta preview, laid out as cameras do.

    Args:
        levels: Red, green and blue, linear, of 65535; with neutral white balance, and primaries of sRGB.
        size: Width and height in pixels.
        orientation: As in EXIF data.
        corner: Levels of the quarter at the top left, as stored.
        dng_tag: Whether it says that it is a DNG; without, it looks like other raw files.
    """
    width, height = size
    mosaic = np.zeros((height, width), "<u2")
    for colours, area in ((levels, mosaic), (corner, mosaic[: height // 4 * 2, : width // 4 * 2])):
        if colours is not None:
            area[0::2, 0::2], area[0::2, 1::2], area[1::2, 0::2], area[1::2, 1::2] = (colours[i] for i in (0, 1, 1, 2))
    preview = np.full((6, 8, 3), [255, 0, 255], np.uint8).tobytes()
    to_camera = np.linalg.inv([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).ravel()
    raw_place = preview_place = mosaic_place = 0
    for _ in range(2):  # first for the lengths, then with the places
        first = {
            254: (4, [1]), 256: (4, [8]), 257: (4, [6]), 258: (3, [8, 8, 8]), 259: (3, [1]), 262: (3, [2]),
            271: (2, b"Test\0"), 272: (2, b"Test One\0"), 273: (4, [preview_place]), 274: (3, [orientation]),
            277: (3, [3]), 278: (4, [6]), 279: (4, [len(preview)]), 330: (4, [raw_place]), 50708: (2, b"Test One\0"),
            50721: (10, to_camera), 50728: (5, [1, 1, 1]), 50778: (3, [21]),
            **({50706: (1, (1, 4, 0, 0)), 50707: (1, (1, 1, 0, 0))} if dng_tag else {}),
        }  # fmt: skip
        second = {
            254: (4, [0]), 256: (4, [width]), 257: (4, [height]), 258: (3, [16]), 259: (3, [1]), 262: (3, [32803]),
            273: (4, [mosaic_place]), 277: (3, [1]), 278: (4, [height]), 279: (4, [mosaic.nbytes]),
            33421: (3, [2, 2]), 33422: (1, (0, 1, 1, 2)), 50714: (3, [0]), 50717: (4, [65535]),
        }  # fmt: skip
        raw_place = 8 + len(directory(first, 8))
        preview_place = raw_place + len(directory(second, raw_place))
        mosaic_place = preview_place + len(preview)
    head = b"II*\0" + struct.pack("<I", 8)
    return head + directory(first, 8) + directory(second, raw_place) + preview + mosaic.tobytes()
