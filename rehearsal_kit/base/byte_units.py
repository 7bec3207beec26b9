"""Units in which bytes are counted for people."""

from __future__ import annotations

MIB = 2**20
GIB = 2**30
