"""Draw videos as rows of frames on a dark background, with a number under each frame."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Images = NDArray[np.float32]

BACKGROUND, _FAINT, _BRIGHT = 30, 165, 235  # grey levels; digits are white on black
_GAP = 3  # pixels between frames


class FrameRow(NamedTuple):
    """A row of frames of B videos.

    Args:
        label: text at the left of the row.
        images: floats in [0, 1], (T, B, h, w) or (T, B, h, w, 3).
        errors: (T, B), a number to write under each frame, except NaN. Default: no numbers.
        unit: of the numbers, written at the left of them. Default: none.
    """

    label: str
    images: Images
    errors: Images | None = None
    unit: str = ""


class Panel(NamedTuple):
    """Rows of frames under a caption; frames in a column belong to the same time."""

    caption: str
    rows: Sequence[FrameRow]


def least_zoom(images: Images, least_width: int) -> int:
    """Return the smallest whole number of screen pixels per pixel that makes frames that wide."""
    return -(-least_width // images.shape[3])


def draw_panels(panels: Sequence[Panel], title: str = "", *, zoom: int, text: int) -> Image.Image:
    """Draw a block of panels for each video, from top to bottom, time from left to right.

    Args:
        panels: each with at least one row; all rows have the same number of videos.
        title: text above. Default: none.
        zoom: screen pixels per pixel.
        text: height of the text in pixels.

    Returns:
        An image in mode "L", or "RGB" if frames have three colours.
    """
    rows = [row for panel in panels for row in panel.rows]
    _, samples, height, width, *colors = rows[0].images.shape
    fonts = {size: ImageFont.load_default(size) for size in (text, round(text * 1.15))}
    font, large = fonts.values()
    left = 2 * text + round(max(font.getlength(t) for row in rows for t in (row.label, row.unit)))
    across, line = width * zoom + _GAP, round(text * 1.5)
    size_of_row = [height * zoom + _GAP + line * (row.errors is not None) for row in rows]
    block = sum(size_of_row) + len(panels) * 2 * line + line  # and a gap below
    total = left + across * max(len(row.images) for row in rows) + text
    size = (total, 2 * line * bool(title) + samples * block - line // 2)
    image = Image.new("RGB" if colors else "L", size, (BACKGROUND,) * 3 if colors else BACKGROUND)
    draw = ImageDraw.Draw(image)

    def write(x: float, y: float, words: str, level: int, anchor: str = "lm") -> None:
        chosen = large if level == _BRIGHT else font
        draw.text((x, y), words, (level,) * 3 if colors else level, chosen, anchor)

    if title:
        write(text, line, title, _BRIGHT)
    y = 2 * line * bool(title)
    for sample in range(samples):
        for panel in panels:
            write(left, y + line, panel.caption, _BRIGHT)
            y += 2 * line
            for row in panel.rows:
                write(text, y + height * zoom // 2, row.label, _FAINT)
                below = y + height * zoom + line // 2
                if row.errors is not None:
                    write(text, below, row.unit, _FAINT)
                for t, frame in enumerate(row.images[:, sample]):
                    x = left + t * across
                    image.paste(_enlarged(frame, zoom), (x, y))
                    if row.errors is not None:
                        number = _three_digits(row.errors[t, sample])
                        write(x + width * zoom // 2, below, number, _FAINT, "mm")
                y += height * zoom + _GAP + line * (row.errors is not None)
        y += line
    return image


def _enlarged(frame: Images, zoom: int) -> Image.Image:
    pixels = (frame.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.repeat(zoom, 0).repeat(zoom, 1))


def _three_digits(number: float) -> str:
    """Format an error: 1234, 123, 12.3, 1.23; NaN as nothing."""
    if np.isnan(number):
        return ""
    decimals = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}"
