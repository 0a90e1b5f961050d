"""Any colour mode that an image file can have -> 8-bit RGB.

Knows Pillow's modes and what each number means in them. Takes a loaded image, gives a new one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_WHITE = 255
_MAX_16 = 65535


def to_rgb(image: Image.Image) -> Image.Image:
    """The loaded ``image`` in mode RGB: transparency over white, more than 8 bits scaled, never clipped.

    Raises:
        ValueError: pixels that are not numbers, or a mode without a rule.
    """
    if image.mode.startswith("I;16"):
        return _from_16_bit(_levels_16(image), image.info.get("transparency"))
    if image.mode == "I" and image.format == "PNG":  # 16 bits by definition; so Pillow before 11 opened them
        return _from_16_bit(np.asarray(image).astype(np.uint32), image.info.get("transparency"))
    if image.mode == "I":
        return _grey(_from_32_bit(np.asarray(image).astype(np.float64)))
    if image.mode == "F":
        return _grey(_from_float(np.asarray(image).astype(np.float64)))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    key: Any = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > _WHITE:
        # a 16-bit PNG: Pillow kept the high bytes of the pixels but all of the transparent colour
        image.info["transparency"] = tuple(v >> 8 for v in key)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (_WHITE, _WHITE, _WHITE, _WHITE))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_16_bit(values: NDArray[np.uint32], key: Any) -> Image.Image:
    """(H, W) levels 0..65535; the level ``key``, if there is one, is transparent."""
    # round(v * 255 / 65535) in integers
    grey = ((values * 255 + _MAX_16 // 2) // _MAX_16).astype(np.uint8)
    if isinstance(key, int):
        grey[values == key] = _WHITE
    return _grey(grey)


def _levels_16(image: Image.Image) -> NDArray[np.uint32]:
    """(H, W) uint32: the levels of any of the 16-bit modes, whatever their byte order."""
    order = ">u2" if image.mode == "I;16B" else "=u2" if image.mode == "I;16N" else "<u2"
    raw = np.frombuffer(image.tobytes(), np.dtype(order))
    return raw.reshape(image.height, image.width).astype(np.uint32)


def _from_32_bit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integers: 0..255 as they are, 0..65535 as 16 bits, any other range stretched from its lowest to its highest."""
    low, high = values.min(), values.max()
    if low >= 0 and high <= _WHITE:
        return values
    if low >= 0 and high <= _MAX_16:
        return values * (255 / _MAX_16)
    return _stretch(values)


def _from_float(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Floats: 0..1 times 255, 0..255 as they are, any other range stretched from its lowest to its highest."""
    if not np.isfinite(values).all():
        raise ValueError("some pixels are not finite numbers")
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        return values * 255
    if low >= 0 and high <= _WHITE:
        return values
    return _stretch(values)


def _stretch(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = values.min(), values.max()
    return (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
