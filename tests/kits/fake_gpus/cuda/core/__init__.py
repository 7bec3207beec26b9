"""A stand-in for cuda.core: a device on which a context can be made, which is written down."""

from __future__ import annotations

import os


class Device:
    made: list[str] = []  # noqa: RUF012 - what CUDA_VISIBLE_DEVICES was when contexts were made

    def set_current(self):
        Device.made.append(os.environ["CUDA_VISIBLE_DEVICES"])
