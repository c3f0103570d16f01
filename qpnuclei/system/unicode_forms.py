"""The same text may be stored with composed or with decomposed letters (Unicode normalisation)."""

from __future__ import annotations

import unicodedata


def nfc(text: str) -> str:
    """Return composed (NFC) text: macOS decomposes file names, other systems do not."""
    return unicodedata.normalize("NFC", text)


def unicode_forms(text: str) -> list[str]:
    """Return text as it is, composed (NFC) and decomposed (NFD), each only once.

    A file that was copied between a Mac and another system may have any of them as its name.
    """
    return list(dict.fromkeys([text, nfc(text), unicodedata.normalize("NFD", text)]))
