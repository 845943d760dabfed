"""Small ICC profiles of every kind of colours, written from the specification (ICC.1:2001-04)."""

import struct

from PIL import ImageCms

_D50 = (0.9642, 1.0, 0.8249)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of one kind of device, from a colour space to the connection space XYZ or Lab."""
    white = b"XYZ \0\0\0\0" + b"".join(map(_fixed, _D50))
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"wtpt": white, b"desc": name, b"cprt": b"text\0\0\0\0none\0", **tags}
    offset, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", offset + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x", offset + len(content), b"test", 0x02100000, kind, space, connection, b"acsp"
    )
    head += b"".join(map(_fixed, _D50))
    return head.ljust(128, b"\0") + table + content


def _lut(inputs: int, outputs: int, values: list[int]) -> bytes:
    """A table of values between the corners of the input space, with 8 bits."""
    identity = b"".join(map(_fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    ramp = bytes(range(256))
    return (
        b"mft1\0\0\0\0"
        + bytes([inputs, outputs, 2, 0])
        + identity
        + ramp * inputs
        + bytes(values)
        + ramp * outputs
    )


# An ink of cyan, magenta or yellow takes a third of the lightness L*, black takes all. There is no hue.
_LIGHTNESS = [0 if ink & 1 else round(255 * (1 - (ink >> 1).bit_count() / 3)) for ink in range(16)]
_LAB = [value for lightness in _LIGHTNESS for value in (lightness, 128, 128)]

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
LINEAR_GREY = _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH2x", 1, 256)})
CMYK = _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": _lut(4, 3, _LAB), b"B2A0": _lut(3, 4, [0] * 32)})
