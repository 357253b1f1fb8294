"""What is inside a page, read without a browser."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np


class Elements(HTMLParser):
    """Every element with its attributes, and the text between scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def content(page: str) -> tuple[dict[str, Any], bytes]:
    """The JSON of a page's data, and the bytes of its arrays."""
    (packed,) = re.findall(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', page)
    unpacked = zlib.decompress(base64.b64decode(packed))
    end = 4 + int.from_bytes(unpacked[:4], "little")
    return json.loads(unpacked[4:end]), unpacked[end:]


def array(place: dict[str, int], arrays: bytes) -> np.ndarray:
    """One of the arrays."""
    planes = np.frombuffer(arrays, np.uint8, 4 * place["n"], place["at"]).reshape(4, -1)
    return np.ascontiguousarray(planes.T).view("<f4").ravel()
