"""Signed URLs: images are not stored, so a URL holds what draws the image again."""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import asdict
from time import time
from typing import Any

from mvar.web.api.errors import Problem
from mvar.web.messages import Drawing

SECONDS = 3600  # that a URL is valid


class Links:
    """Makes and reads signed URLs.

    Args:
        key: replicas with the same key read each other's URLs; without one they read their own.
    """

    def __init__(self, key: str | None) -> None:
        secret = key.encode() if key else secrets.token_bytes(32)
        # Slow on purpose: a URL may be passed on, and must not help to guess the key.
        self._secret = hashlib.scrypt(secret, salt=b"mvar image links", n=2**14, r=8, p=1)

    def token(self, model: str, drawing: Drawing, quality: int) -> str:
        """The signed part of a URL."""
        values = [model, {**asdict(drawing), "partials": []}, quality, int(time()) + SECONDS]
        content = _text(json.dumps(values, separators=(",", ":")).encode())
        return f"{content}.{_text(self._signature(content))}"

    def read(self, token: str) -> tuple[str, Drawing, int]:
        """Model, drawing and quality of a token.

        Raises:
            Problem: 404 for one that was not made here, 410 for one that is too old.
        """
        content, _, signature = token.partition(".")
        try:
            given = base64.urlsafe_b64decode(signature.encode() + b"==")
        except (ValueError, binascii.Error):
            given = b""
        if not hmac.compare_digest(given, self._signature(content)):
            raise Problem(404, "url: not one of this server", None, "not_found")
        values: list[Any] = json.loads(base64.urlsafe_b64decode(content + "=="))
        model, drawing, quality, until = values
        if time() > until:
            raise Problem(410, "url: has expired; draw the image again", None, "expired")
        return model, Drawing(**drawing), quality

    def _signature(self, content: str) -> bytes:
        return hmac.digest(self._secret, content.encode(), "sha256")


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
