"""Arrays to pictures: fixed limits, 256 colours, NaN transparent. Nothing here knows a widget."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from plotly.colors import cyclical, diverging, sequential, unlabel_rgb

from rehearsal_kit.record.preview_files import Image

CYCLIC_FROM_RAD = 2.8
"""Phases that reach further than this may wrap, so both ends of their colour map must meet."""


@dataclass(frozen=True)
class Scale:
    """What is black and what is white: the limits of a picture and its colours."""

    low: float
    high: float
    colours: bytes
    """256 x RGBA; number 0 is transparent and stands for NaN."""


def amplitude_scale(truth: Image) -> Scale:
    """Limits of the true amplitude, so that a prediction is seen to approach it and nothing flickers."""
    if not np.isfinite(truth).any():
        return Scale(0.0, 1.0, colours("grey"))
    low, high = float(np.nanmin(truth)), float(np.nanmax(truth))
    margin = max(0.05 * (high - low), 1e-3)
    return Scale(low - margin, high + margin, colours("grey"))


def phase_scale(truth: Image) -> Scale:
    """Limits around zero; the whole circle in cyclic colours once the true phase comes near wrapping."""
    reach = float(np.nanmax(np.abs(truth))) if np.isfinite(truth).any() else math.pi
    if reach > CYCLIC_FROM_RAD:
        return Scale(-math.pi, math.pi, colours("cyclic"))
    reach = max(1.05 * reach, 1e-2)
    return Scale(-reach, reach, colours("diverging"))


def diffraction_picture(pattern: Image) -> tuple[Image, Scale]:
    """The pattern on a logarithmic axis of three decades below its maximum, and its limits."""
    peak = float(np.nanmax(pattern)) if np.isfinite(pattern).any() else 0.0
    relative = np.clip(pattern / peak, 1e-3, None) if peak > 0 else np.full_like(pattern, 1e-3)
    return np.log10(relative).astype(np.float32), Scale(-3.0, 0.0, colours("dark"))


@dataclass(frozen=True)
class Tile:
    """One picture with its caption."""

    caption: str
    image: Image
    scale: Scale


def input_tile(name: str, image: Image) -> Tile:
    """What goes into the network, float32 (row, column): diffraction is on a logarithmic axis."""
    if name == "diffraction":
        return Tile("diffraction (log10)", *diffraction_picture(image))
    return Tile(name, image, amplitude_scale(image))


def field_scale(name: str, truth: Image) -> Scale:
    """The scale that the truth of a field, float32 (row, column), shares with what is predicted of it."""
    return phase_scale(truth) if name == "phase" else amplitude_scale(truth)


def indices(image: Image, scale: Scale) -> NDArray[np.uint8]:
    """The number of its colour for every pixel: 1 to 255 from low to high, 0 where the image is NaN."""
    share = (image.astype(np.float64) - scale.low) / (scale.high - scale.low)
    numbered = 1 + np.clip(share, 0, 1) * 254
    return np.where(np.isnan(numbered), 0, np.rint(np.nan_to_num(numbered))).astype(np.uint8)


def shrink(image: Image, side: int) -> Image:
    """Means over blocks, square unless the image is thinner, so that no edge is longer than `side`.

    What fills no block is cut off.
    """
    block = -(-max(image.shape) // side)
    if block == 1:
        return image
    down, across = (min(block, length) for length in image.shape)
    rows, columns = image.shape[0] // down, image.shape[1] // across
    cut = image[: rows * down, : columns * across]
    means: Image = cut.reshape(rows, down, columns, across).mean(axis=(1, 3), dtype=np.float32)
    return means


def colours(name: str) -> bytes:
    """One of the four colour maps as 256 RGBA words: dark, grey, diverging or cyclic."""
    stops = {
        "dark": sequential.Inferno,
        "grey": ["rgb(0,0,0)", "rgb(255,255,255)"],
        "diverging": diverging.RdBu[::-1],
        "cyclic": cyclical.Twilight,
    }[name]
    rgb = np.array([_rgb(stop) for stop in stops])
    place = np.linspace(0, len(rgb) - 1, 255)
    table = np.zeros((256, 4), np.uint8)
    for channel in range(3):
        table[1:, channel] = np.rint(np.interp(place, np.arange(len(rgb)), rgb[:, channel]))
    table[1:, 3] = 255
    return table.tobytes()


def png_uri(image: Image, scale: Scale) -> str:
    """The picture as a PNG with a palette, ready for the `src` of an <img>."""
    numbered = indices(image, scale)
    table = np.frombuffer(scale.colours, np.uint8).reshape(256, 4)
    height, width = numbered.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), numbered]).tobytes()
    png = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", table[:, :3].tobytes())
        + _chunk(b"tRNS", table[:1, 3].tobytes())
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()


def png_of(picture: NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file of a picture (row, column, 3), red, green and blue."""
    height, width = picture.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1).tobytes()
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _rgb(colour: str) -> tuple[float, float, float]:
    if colour.startswith("#"):
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
    red, green, blue = unlabel_rgb(colour)
    return red, green, blue
