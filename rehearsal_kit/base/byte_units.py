"""Units in which bytes are counted for people."""

from __future__ import annotations

import re

from rehearsal_kit.base.errors import SettingsError

MIB = 2**20
GIB = 2**30


def parse_bytes(name: str, text: str) -> int:
    """Bytes that a text such as "512 MiB" or "4 GB" means; SettingsError if it means none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?i?B)\s*", text)
    units = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
    units |= {"Ki": 1024, "ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}
    value = int(float(match[1]) * units.get(match[2][:-1], 0)) if match else 0
    if value < 1:
        raise SettingsError(
            f'{name} is {text!r}; it must be a whole number of samples, or bytes such as "512 MiB" or "4 GB".'
        )
    return value
