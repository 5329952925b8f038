"""The page at `/` and the API's description for people at `/docs`: files, read once and never changed while serving."""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from service.http.messages import HttpResponse

_FOLDER: Final = Path(__file__).parents[1] / "page"

_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
"""Files of the page, by their names' ends; others are not served."""

_PACKED: Final = frozenset({".html", ".css", ".js", ".svg"})
"""What gzip makes smaller."""

_EVERYWHERE: Final[Mapping[str, str]] = {"referrer-policy": "no-referrer", "x-frame-options": "DENY"}

_PAGE_HEADERS: Final[Mapping[str, str]] = {
    # Images are shown from memory (blob:); a camera's stream needs no source.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    **_EVERYWHERE,
}
"""Of the page: nothing from elsewhere runs in it, and no other page holds it."""

_DOCS_HEADERS: Final[Mapping[str, str]] = {
    # Swagger UI sets styles of its own on elements, and draws its icons from data.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    **_EVERYWHERE,
}

_SWAGGER: Final = (
    "swagger-ui.css",
    "index.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-initializer.js",
)
"""Swagger UI as BentoML ships it."""

# Without the tracker of BentoML's own page: a factory floor has no internet.
_DOCS: Final = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Pomona's API</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<link rel="stylesheet" href="./static_content/index.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./static_content/swagger-initializer.js"></script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as browsers get it.

    Attributes:
        body: as it is.
        packed: with gzip; None where that saves nothing.
        media_type: of the body.
        etag: changes with the body.
        headers: further ones.
    """

    body: bytes
    packed: bytes | None
    media_type: str
    etag: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, name: str, body: bytes, headers: Mapping[str, str]) -> PageFile:
        """Prepare a file.

        Args:
            name: ends with one of the known endings.
            body: its bytes.
            headers: of the answer, beside type and cache.
        """
        ending = Path(name).suffix
        packed = gzip.compress(body, mtime=0) if ending in _PACKED else None
        etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        return cls(body, packed, _TYPES[ending], etag, headers)

    def answer(self, asked: Mapping[str, str]) -> HttpResponse:
        """Return the file, or that the browser's copy still holds.

        Browsers ask each time whether their copy is the present one: files of two versions are never mixed.

        Args:
            asked: headers of the request, by name in lower case.
        """
        headers = {"etag": self.etag, "vary": "accept-encoding", **self.headers}
        known = {tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")}
        if self.etag in known:
            return HttpResponse(b"", 304, self.media_type, headers, cache_control="no-cache")
        body = self.body
        if self.packed is not None and _takes_gzip(asked.get("accept-encoding", "")):
            body = self.packed
            headers["content-encoding"] = "gzip"
        return HttpResponse(body, media_type=self.media_type, headers=headers, cache_control="no-cache")


@functools.cache
def load_files() -> Mapping[str, PageFile]:
    """Read all files of the page and of `/docs`, by the path at which they are served."""
    files = {
        f"/page/{file.relative_to(_FOLDER).as_posix()}": PageFile.of(file.name, file.read_bytes(), _EVERYWHERE)
        for file in sorted(_FOLDER.rglob("*"))
        if file.suffix in _TYPES and file.is_file()
    }
    index = files.pop("/page/index.html")
    shipped: Traversable = importlib.resources.files("bentoml._internal.server") / "static_content"
    return {
        "/": PageFile.of("index.html", index.body, _PAGE_HEADERS),
        "/docs": PageFile.of("docs.html", _DOCS, _DOCS_HEADERS),
        **files,
        **{f"/static_content/{name}": PageFile.of(name, (shipped / name).read_bytes(), {}) for name in _SWAGGER},
    }


def _takes_gzip(accepted: str) -> bool:
    """Return whether `Accept-Encoding` names gzip, with a weight other than 0."""
    for each in accepted.lower().split(","):
        coding, _, weight = each.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
