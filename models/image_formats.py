"""Which image formats are read, and which one leading bytes claim to be."""

from __future__ import annotations

import re

from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.errors import NotAnImage, UnsupportedImageFormat

ACCEPTED = "JPEG, PNG, WebP, BMP or TIFF"
"""What is read, in words."""

# Taken from the plugins so that they are registered: Pillow otherwise imports all of its plugins
# when the first TIFF or WebP arrives.
FORMATS = tuple(
    str(reader.format) for reader in (JpegImageFile, PngImageFile, WebPImageFile, BmpImageFile, TiffImageFile)
)
"""Pillow's names of the readers."""

_READ = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP"),
    # Text may start with "BM", so the size of the second header must be a known one or cut off.
    (re.compile(rb"BM.{12}([\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|.{0,3}\Z)", re.DOTALL), "BMP"),
    (re.compile(rb"BM.{0,11}\Z", re.DOTALL), "BMP"),
    (re.compile(rb"II[*+]\0|MM\0[*+]|MM\*\0|II\0\*"), "TIFF"),
)

_NOT_READ = (
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb".{4}ftypmif1.{4}.{0,48}avif", re.DOTALL), "AVIF"),
    (re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\x00\x00\x01\x00[^\x00]\x00"), "ICO"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"), "JPEG XL"),
    (re.compile(rb"%PDF-"), "PDF"),
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!doctype svg|<svg).*<svg|\s*<svg", re.I | re.S),
        "SVG",
    ),
)
_SNIFFED = 1024


def sniff(data: bytes) -> str:
    """Name the format that the leading bytes claim, or raise where it is not read."""
    head = data[:_SNIFFED]
    for pattern, name in _READ:
        if pattern.match(head):
            return name
    for pattern, name in _NOT_READ:
        if pattern.match(head):
            raise UnsupportedImageFormat(f"The image is {name}. Send {ACCEPTED}.")
    if not data:
        raise NotAnImage(f"There are no bytes. Send an image: {ACCEPTED}.")
    raise NotAnImage(f"The {len(data)} bytes start like no image format: {data[:8]!r}. Send {ACCEPTED}.")
