"""Files that contain their own SHA-256, so that damage is noticed wherever they are copied."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

ZEROS = "0" * 64
DIGEST = re.compile(r"[0-9a-f]{64}")


def seal(encode: Callable[[str], bytes]) -> bytes:
    """Return `encode(digest)`, where the digest is the SHA-256 of `encode(ZEROS)` in hexadecimal digits."""
    return encode(hashlib.sha256(encode(ZEROS)).hexdigest())


def is_intact(data: bytes, digest: object) -> bool:
    """Return whether sealed data, from which the digest was read, is unchanged since it was written."""
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        return False
    return hashlib.sha256(data.replace(digest.encode(), ZEROS.encode())).hexdigest() == digest
