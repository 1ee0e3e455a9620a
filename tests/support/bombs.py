"""Image files that cost a reader far more than they cost who makes them, or that no photographer ever made.

`FOREIGN` holds formats that are not read, `REFUSED` what has to be refused, and `HARMLESS` what may be read or refused,
as long as it is soon and in little memory. Each is built when it is called for, in a fraction of a second.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

MIB = 1 << 20
Make = Callable[[], bytes]
FOREIGN: dict[str, Make] = {}
REFUSED: dict[str, Make] = {}
HARMLESS: dict[str, Make] = {}


def _of(corpus: dict[str, Make]) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        corpus[make.__name__] = make
        return make

    return add


def saved(kind: str, size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: object) -> bytes:
    """A plain image of one colour as Pillow writes it."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def noise(kind: str, size: tuple[int, int] = (24, 16), **options: object) -> bytes:
    """A small photograph of noise as Pillow writes it."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


# -- formats that are not read -------------------------------------------------------------------------------------

for _kind in ("JPEG2000", "ICO", "ICNS", "PCX", "SGI", "DDS", "BLP", "MSP", "TGA", "DIB", "QOI", "IM", "SPIDER"):

    def _foreign(kind: str = _kind) -> bytes:
        mode = {"MSP": "1", "BLP": "P", "SPIDER": "F"}.get(kind, "RGB")
        return saved(kind, (64, 64) if kind in ("ICNS", "ICO") else (8, 8), mode)

    FOREIGN[_kind.lower()] = _foreign


@_of(FOREIGN)
def eps_that_writes_a_file() -> bytes:
    """What Ghostscript would run."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/owned) (w) file closefile\nshowpage\n"
    )


@_of(FOREIGN)
def fits() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2",
             "NAXIS1  =                    8", "NAXIS2  =                    8", "END"]  # fmt: skip
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


@_of(FOREIGN)
def psd() -> bytes:
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 8, 8, 8, 3) + bytes(12 + 2 + 192)


@_of(FOREIGN)
def wmf() -> bytes:
    return b"\xd7\xcd\xc6\x9a" + bytes(200)


@_of(FOREIGN)
def xpm() -> bytes:
    return b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"\n};\n'


@_of(FOREIGN)
def xbm() -> bytes:
    return b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {\n0x00 };\n"


@_of(FOREIGN)
def plain_pbm() -> bytes:
    return b"P1\n4000 4000\n" + b"0 " * (7 * MIB)


@_of(FOREIGN)
def plain_pgm() -> bytes:
    return b"P2\n2800 2800\n255\n" + b"0 " * (7 * MIB)


@_of(FOREIGN)
def plain_ppm() -> bytes:
    return b"P3\n1600 1600\n255\n" + b"0 0 0 " * (5 * MIB // 2)


@_of(FOREIGN)
def plain_ppm_after_a_comment() -> bytes:
    return b"P3#\n1600 1600\n255\n" + b"0 0 0 " * (5 * MIB // 2)


@_of(FOREIGN)
def pfm() -> bytes:
    return b"Pf\n8 8\n-1.0\n" + bytes(256)


@_of(FOREIGN)
def pam() -> bytes:
    return b"P7\nWIDTH 8\nHEIGHT 8\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(192)


@_of(FOREIGN)
def pil_pnm_of_cmyk() -> bytes:
    return b"PyCMYK\n8 8\n255\n" + bytes(256)


@_of(FOREIGN)
def heic() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


# -- PNG -------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, held: bytes) -> bytes:
    return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))


def png(*chunks: bytes, size: tuple[int, int] = (16, 16), interlaced: int = 0, pixels: bytes | None = None) -> bytes:
    """A grey PNG with `chunks` before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, interlaced))
    data = zlib.compress(bytes((size[0] + 1) * size[1])) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _zeros(mebibytes: int) -> bytes:
    """So many of zeros, packed; in no time, for each is the same block."""
    packer = zlib.compressobj(9)
    start = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    check = (mebibytes * MIB % 65521) << 16 | 1
    return start + block * mebibytes + raw.flush() + struct.pack(">I", check)


def large_png(side: int) -> bytes:
    """Sound and black: some kilobytes, and a second to decode where the side is 12,000; made at once."""
    return png(size=(side, side), pixels=_zeros((side + 1) * side // MIB + 1))


@_of(REFUSED)
def png_of_a_huge_size() -> bytes:
    return png(size=(60_000, 60_000), pixels=zlib.compress(bytes(100)))


@_of(REFUSED)
def png_of_very_many_chunks() -> bytes:
    return png(*[chunk(b"prVt", b"")] * 120_000)


@_of(REFUSED)
def png_of_very_many_chunks_behind_its_pixels() -> bytes:
    return png()[:-12] + chunk(b"tEXt", b"a\0b") * 60_000 + chunk(b"IEND", b"")


@_of(REFUSED)
def png_with_compressed_text() -> bytes:
    return png(*[chunk(b"zTXt", b"a\0\0" + _zeros(64))] * 20)


@_of(HARMLESS)
def png_with_a_compressed_profile() -> bytes:
    return png(chunk(b"iCCP", b"a\0\0" + _zeros(256)))


@_of(REFUSED)
def png_with_compressed_international_text() -> bytes:
    return png(*[chunk(b"iTXt", b"a\0\1\0\0\0" + _zeros(64))] * 20)


@_of(HARMLESS)
def png_whose_pixels_unpack_to_gigabytes() -> bytes:
    return png(pixels=_zeros(2048))


@_of(HARMLESS)
def png_with_much_behind_its_pixels() -> bytes:
    return png() + bytes(8 * MIB)


@_of(HARMLESS)
def apng_of_thousands_of_frames() -> bytes:
    control = struct.pack(">IIIIIHHBB", 1, 16, 16, 0, 0, 1, 1, 0, 0)
    pixels = zlib.compress(bytes(17 * 16))
    frame = chunk(b"fcTL", control) + chunk(b"fdAT", struct.pack(">I", 2) + pixels)
    first = chunk(b"acTL", struct.pack(">II", 10_000, 0)) + chunk(b"fcTL", bytes(4) + control[4:])
    return png(first)[:-12] + frame * 10_000 + chunk(b"IEND", b"")


@_of(HARMLESS)
def png_with_exif_that_claims_gigabytes() -> bytes:
    return png(chunk(b"eXIf", exif_of_repeated_tags(MIB)))


@_of(REFUSED)
def png_of_a_line() -> bytes:
    return png(size=(1, 100_000))


# -- JPEG ------------------------------------------------------------------------------------------------------------


def exif_of_repeated_tags(length: int) -> bytes:
    """A directory of 60,000 tags, each of which claims all that follows."""
    tags = b"".join(struct.pack("<HHII", k, 7, length - 800_000, 800_000) for k in range(60_000))
    return (b"II*\0" + struct.pack("<IH", 8, 60_000) + tags).ljust(length, b"\1")


def segments(marker: int, name: bytes, content: bytes) -> bytes:
    """`content` in as many segments as it takes."""
    parts = [content[k : k + 65_000] for k in range(0, len(content), 65_000)]
    return b"".join(struct.pack(">HH", 0xFF00 | marker, 2 + len(name + part)) + name + part for part in parts)


def after_start(jpeg: bytes, more: bytes) -> bytes:
    return jpeg[:2] + more + jpeg[2:]


@_of(REFUSED)
def jpeg_of_very_many_scans() -> bytes:
    data = saved("JPEG", (2000, 2000), progressive=True)
    last = data[data.rindex(b"\xff\xda\0") : -2]
    return data[:-2] + last * 20_000 + data[-2:]


@_of(REFUSED)
def jpeg_of_a_huge_size() -> bytes:
    data = bytearray(saved("JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@_of(REFUSED)
def jpeg_of_very_many_segments() -> bytes:
    return after_start(saved("JPEG"), b"\xff\xec\0\2" * (1 << 18))


@_of(REFUSED)
def jpeg_of_junk_before_its_pixels() -> bytes:
    return after_start(saved("JPEG"), bytes(8 * MIB))


@_of(HARMLESS)
def jpeg_with_exif_that_claims_gigabytes() -> bytes:
    return after_start(saved("JPEG"), segments(0xE1, b"Exif\0\0", exif_of_repeated_tags(8 * MIB)))


@_of(HARMLESS)
def jpeg_with_exif_behind_junk() -> bytes:
    return after_start(
        saved("JPEG"), b"\xff\xec\0\4\0\0\0\0\0" + segments(0xE1, b"Exif\0\0", exif_of_repeated_tags(MIB))
    )


@_of(HARMLESS)
def jpeg_with_a_directory_of_pictures_that_claims_much() -> bytes:
    tags = b"".join(struct.pack("<HHII", k, 7, 60_000, 0) for k in range(5_400))
    index = b"II*\0" + struct.pack("<IH", 8, 5_400) + tags
    return after_start(saved("JPEG"), struct.pack(">HH", 0xFFE2, 6 + len(index)) + b"MPF\0" + index)


@_of(HARMLESS)
def jpeg_with_much_colour_profile() -> bytes:
    return after_start(saved("JPEG"), segments(0xE2, b"ICC_PROFILE\0\1\1", bytes(8 * MIB)))


@_of(HARMLESS)
def jpeg_with_much_behind_it() -> bytes:
    return saved("JPEG") + bytes(range(1, 256)) * 40_000


# -- TIFF ------------------------------------------------------------------------------------------------------------

_GREY = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1}


def tiff(values: dict[int, int | tuple[int, int, int]], behind: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF of one directory.

    Args:
        values: Of each tag; or kind, count and value (or its place).
        behind: What follows the directory.
        following: Place of the next directory.
    """
    tags = b"".join(
        struct.pack("<HHII", tag, *(value if isinstance(value, tuple) else (4, 1, value)))
        for tag, value in sorted(values.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + tags + struct.pack("<I", following) + behind


def _end(count: int) -> int:
    return 8 + 2 + 12 * count + 4


@_of(REFUSED)
def tiff_of_tags_that_claim_gigabytes() -> bytes:
    many = {tag: (7, 4 * MIB, 0) for tag in range(1000, 21_000)}
    return tiff({**_GREY, 273: 8, 278: 16, 279: 256, **many}, bytes(4 * MIB))


@_of(REFUSED)
def tiff_of_very_many_tags() -> bytes:
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 400_000) + struct.pack("<HHQQ", 1000, 99, 1, 0) * 400_000


@_of(REFUSED)
def tiff_of_very_many_strips() -> bytes:
    sizes = {256: 16, 257: 60_000, 278: 1, 273: (4, 60_000, _end(9)), 279: (4, 60_000, _end(9))}
    return tiff({**_GREY, **sizes}, bytes(4 * 60_000))


@_of(REFUSED)
def tiff_of_a_huge_tile() -> bytes:
    return tiff({**_GREY, 322: 60_000, 323: 60_000, 324: 8, 325: 256})


@_of(REFUSED)
def tiff_of_a_huge_size() -> bytes:
    return tiff({**_GREY, 256: 60_000, 257: 60_000, 273: 8, 278: 60_000, 279: 256})


@_of(REFUSED)
def tiff_of_millions_of_bit_depths() -> bytes:
    return tiff({**_GREY, 258: (3, 4 * MIB, _end(9)), 273: 8, 278: 16, 279: 256}, bytes(8 * MIB))


@_of(REFUSED)
def tiff_of_odd_bits() -> bytes:
    return tiff({**_GREY, 258: 13, 273: 8, 278: 16, 279: 256}, bytes(600))


@_of(REFUSED)
def tiff_of_thousands_of_channels() -> bytes:
    return tiff({**_GREY, 277: 60_000, 273: 8, 278: 16, 279: 256}, bytes(600))


@_of(HARMLESS)
def tiff_whose_directories_go_round() -> bytes:
    return tiff({**_GREY, 273: _end(9), 278: 16, 279: 256}, bytes(256), following=8)


@_of(HARMLESS)
def tiff_of_thousands_of_directories() -> bytes:
    first = tiff({**_GREY, 273: _end(9), 278: 16, 279: 256}, bytes(256), following=_end(9) + 256)
    return first + b"".join(struct.pack("<HI", 0, _end(9) + 256 + 6 * k) for k in range(1, 60_000))


@_of(HARMLESS)
def tiff_of_deflate_that_unpacks_to_gigabytes() -> bytes:
    packed = _zeros(1024)
    return tiff({**_GREY, 259: 8, 273: _end(9), 278: 16, 279: len(packed)}, packed)


@_of(REFUSED)
def tiff_of_big_endian_64_bits() -> bytes:
    return b"MM\0+" + struct.pack(">HHQ", 8, 0, 16) + bytes(MIB)


@_of(REFUSED)
def tiff_of_a_beginning_that_only_pillow_takes() -> bytes:
    return b"MM*\0" + tiff({**_GREY, 273: _end(9), 278: 16, 279: 256}, bytes(256))[4:]


@_of(REFUSED)
def tiff_of_no_directory() -> bytes:
    return b"II*\0\xff\xff\xff\xff" + bytes(100)


@_of(HARMLESS)
def tiff_with_a_jpeg_of_very_many_scans() -> bytes:
    held = jpeg_of_very_many_scans()
    tags = {
        256: 4000,
        257: 4000,
        258: (3, 3, _end(9)),
        259: 7,
        262: 6,
        277: 3,
        273: _end(9) + 6,
        278: 4000,
        279: len(held),
    }
    return tiff(tags, struct.pack("<HHH", 8, 8, 8) + held)


# -- GIF -------------------------------------------------------------------------------------------------------------


def gif(
    size: tuple[int, int] = (16, 16), before: bytes = b"", frame: tuple[int, int, int, int] = (0, 0, 16, 16)
) -> bytes:
    sound = noise("GIF", (16, 16))
    place = sound.index(b"\x2c\0\0\0\0")
    held = sound[place + 9 :]
    return (
        sound[:6] + struct.pack("<HH", *size) + sound[10:place] + before + b"\x2c" + struct.pack("<HHHH", *frame) + held
    )


@_of(REFUSED)
def gif_of_a_huge_screen() -> bytes:
    return gif((65_000, 65_000))


@_of(REFUSED)
def gif_of_a_frame_beyond_its_screen() -> bytes:
    return gif(frame=(40_000, 40_000, 16, 16))


@_of(REFUSED)
def gif_of_comments_without_end() -> bytes:
    return gif(before=b"\x21\xfe" + b"\1x" * (4 * MIB) + b"\0")


@_of(HARMLESS)
def gif_of_thousands_of_frames() -> bytes:
    sound = gif()
    return sound[:-1] + sound[sound.index(b"\x2c\0\0\0\0") : -1] * 5_000 + b";"


@_of(HARMLESS)
def gif_of_a_large_plain_frame() -> bytes:
    return saved("GIF", (3_000, 3_000), "L")


# -- WebP and AVIF ---------------------------------------------------------------------------------------------------


def with_exif(kind: str, exif: bytes) -> bytes:
    """A photograph with EXIF data that Pillow, which reads what it writes, never sees here."""
    stand_in = (b"II*\0" + struct.pack("<IH", 8, 0)).ljust(len(exif), b"\2")
    data = noise(kind, exif=b"Exif\0\0" + stand_in)
    assert stand_in in data
    return data.replace(stand_in, exif)


def riff(*chunks: bytes) -> bytes:
    held = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(held)) + held


def riff_chunk(kind: bytes, held: bytes) -> bytes:
    return kind + struct.pack("<I", len(held)) + held + b"\0" * (len(held) % 2)


@_of(REFUSED)
def webp_of_a_huge_canvas() -> bytes:
    big = struct.pack("<I", 16_383)[:3]
    sound = noise("WEBP", lossless=True)[12:]
    return riff(riff_chunk(b"VP8X", b"\2\0\0\0" + big + big), riff_chunk(b"ANIM", bytes(6)),
                riff_chunk(b"ANMF", bytes(6) + big + big + b"\1\0\0\0" + sound))  # fmt: skip


@_of(REFUSED)
def webp_of_a_huge_size() -> bytes:
    data = bytearray(noise("WEBP", lossless=True))
    data[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    return bytes(data)


@_of(HARMLESS)
def webp_with_exif_that_claims_gigabytes() -> bytes:
    return with_exif("WEBP", exif_of_repeated_tags(MIB))


@_of(HARMLESS)
def webp_of_thousands_of_frames() -> bytes:
    frames = [Image.new("RGB", (16, 16), (k % 256, k // 256, 0)) for k in range(200)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0, quality=0)
    return file.getvalue()


@_of(REFUSED)
def avif_of_a_huge_size() -> bytes:
    data = bytearray(noise("AVIF"))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = struct.pack(">II", 16_000, 16_000)
    return bytes(data)


@_of(REFUSED)
def avif_with_exif_that_claims_gigabytes() -> bytes:
    return with_exif("AVIF", exif_of_repeated_tags(4 * MIB))


# -- BMP -------------------------------------------------------------------------------------------------------------


def bmp(width: int, height: int, compression: int, pixels: bytes, *, header: int = 40, offset: int = 1078) -> bytes:
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, 8, compression, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + bytes(1024) + pixels


@_of(REFUSED)
def bmp_of_runs_of_one_pixel() -> bytes:
    return bmp(6_000, 1_300, 1, b"\1\0" * (6_000 * 1_300))


@_of(REFUSED)
def bmp_of_runs_of_leaps() -> bytes:
    return bmp(6_000, 6_000, 1, b"\0\2\1\0" * (3 * MIB))


@_of(REFUSED)
def bmp_of_a_huge_size() -> bytes:
    return bmp(60_000, 60_000, 0, bytes(100))


@_of(REFUSED)
def bmp_of_a_huge_header() -> bytes:
    return bmp(16, 16, 0, bytes(256), header=2**31)


@_of(REFUSED)
def bmp_whose_pixels_are_nowhere() -> bytes:
    return bmp(16, 16, 0, bytes(256), offset=2**31)


# -- PNM -------------------------------------------------------------------------------------------------------------


@_of(REFUSED)
def pnm_of_comments_without_end() -> bytes:
    return b"P6\n#" + b"x" * (15 * MIB)


@_of(REFUSED)
def pnm_of_blanks_without_end() -> bytes:
    return b"P5\n" + b" " * (15 * MIB)


@_of(REFUSED)
def pnm_of_absurd_numbers() -> bytes:
    return b"P6 999999999 999999999 255\n" + bytes(100)


@_of(REFUSED)
def pnm_of_a_large_size_and_no_pixels() -> bytes:
    return b"P6 7000 7000 254\n" + bytes(100)


@_of(HARMLESS)
def pnm_whose_white_is_254() -> bytes:
    return b"P6 2200 2200 254\n" + bytes(2200 * 2200 * 3)


@_of(HARMLESS)
def pnm_of_twelve_bits() -> bytes:
    return b"P5 2600 2600 4095\n" + bytes(2600 * 2600 * 2)
