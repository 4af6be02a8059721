"""What image files begin with, whatever they are called: to tell that one is there, not to decode it."""

# JPEG, PNG, TIFF (also big), GIF, JPEG 2000 (file, codestream), JPEG XL (codestream, container).
_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"GIF87a", b"GIF89a"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    *(b"\xff\x0a", b"\0\0\0\x0cJXL "),
)
LENGTH = 12


def begins_as_image(start: bytes) -> bool:
    """Return whether a file that begins with these bytes, `LENGTH` or fewer, is an image."""
    return start.startswith(_STARTS) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP") or _is_bmp(start)


def _is_bmp(start: bytes) -> bool:
    """Two letters are few: four reserved bytes are zero besides."""
    return start[:2] == b"BM" and start[6:10] == bytes(4)
