"""Pictures of digits as on house fronts, drawn by a program: the images of `synth-digits`.

Every picture is a function of (split, index) alone. Random numbers are raw words of PCG64 and colours whole numbers;
rotations are rational, since sine and cosine differ between C libraries. What is left is Pillow's drawing: the version
in use is part of the set's hash.
"""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

SIZE = 32
"""Edge of a picture."""
CELL = 48
"""Edge of a glyph's mask; its digit is as high as HEIGHT and centred."""
HEIGHT = 32
STYLES = 6

_LOOP = [(0.5, 0.0), (0.8, 0.08), (0.95, 0.3), (0.95, 0.7), (0.8, 0.92), (0.5, 1.0), (0.2, 0.92), (0.05, 0.7),
         (0.05, 0.3), (0.2, 0.08), (0.5, 0.0)]  # fmt: skip
_SIX = [(0.85, 0.05), (0.5, 0.08), (0.2, 0.33), (0.05, 0.7), (0.2, 0.94), (0.5, 1.0), (0.8, 0.94), (0.95, 0.72),
        (0.8, 0.5), (0.5, 0.44), (0.2, 0.52), (0.06, 0.7)]  # fmt: skip
STROKES = (
    _LOOP,
    [(0.25, 0.2), (0.55, 0.0), (0.55, 1.0)],
    [(0.05, 0.27), (0.2, 0.06), (0.5, 0.0), (0.8, 0.06), (0.95, 0.27), (0.85, 0.5), (0.05, 1.0), (0.95, 1.0)],
    [(0.05, 0.1), (0.4, 0.0), (0.8, 0.06), (0.9, 0.25), (0.75, 0.44), (0.4, 0.49), (0.8, 0.55), (0.95, 0.75),
     (0.8, 0.95), (0.4, 1.0), (0.05, 0.9)],
    [(0.7, 1.0), (0.7, 0.0), (0.05, 0.7), (0.95, 0.7)],
    [(0.9, 0.0), (0.15, 0.0), (0.1, 0.45), (0.5, 0.4), (0.85, 0.5), (0.95, 0.7), (0.8, 0.93), (0.45, 1.0),
     (0.05, 0.9)],
    _SIX,
    [(0.05, 0.0), (0.95, 0.0), (0.4, 1.0)],
    [(0.5, 0.47), (0.2, 0.4), (0.1, 0.23), (0.25, 0.05), (0.5, 0.0), (0.75, 0.05), (0.9, 0.23), (0.8, 0.4),
     (0.5, 0.47), (0.15, 0.57), (0.03, 0.77), (0.2, 0.95), (0.5, 1.0), (0.8, 0.95), (0.97, 0.77), (0.85, 0.57),
     (0.5, 0.47)],
    [(1 - x, 1 - y) for x, y in _SIX],
)  # fmt: skip
"""Digits as one pen stroke each, in a box of 1 by 1."""
SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
_SEGMENT_ENDS = {
    "a": ((0, 0), (1, 0)), "b": ((1, 0), (1, 0.5)), "c": ((1, 0.5), (1, 1)), "d": ((0, 1), (1, 1)),
    "e": ((0, 0.5), (0, 1)), "f": ((0, 0), (0, 0.5)), "g": ((0, 0.5), (1, 0.5)),
}  # fmt: skip


def drawn(split: int, n: int) -> "tuple[NDArray[np.uint8], NDArray[np.int64]]":
    """Return the first n pictures [n, 3, 32, 32] of a split and their digits; those of a longer set begin alike."""
    import numpy as np

    images, labels = np.empty((n, 3, SIZE, SIZE), np.uint8), np.empty(n, np.int64)
    for index in range(n):
        images[index], labels[index] = picture(split, index)
    return images, labels


def picture(split: int, index: int) -> "tuple[NDArray[np.uint8], int]":
    """Return one picture [3, 32, 32] and its digit: background, neighbours, stripes, the digit, blur and noise."""
    import numpy as np
    from PIL import Image, ImageFilter

    raw: Any = np.random.PCG64(np.random.SeedSequence([split, index])).random_raw(64 + 3 * SIZE * SIZE // 4)
    draws = _Draws(raw[:64].tolist())
    label = draws.below(10)
    mask = np.asarray(_written(draws, label), np.int32)
    back, front = _colours(draws)
    ground = np.array(back)[:, None, None] + _slope(draws)
    _stripe(draws, ground)
    mixed = (ground * (255 - mask) + np.array(front)[:, None, None] * mask + 127) // 255
    image = Image.fromarray(mixed.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    image = image.filter(ImageFilter.GaussianBlur(draws.below(5) * 0.25))
    grains = raw[64:].view(np.uint8).reshape(2, SIZE, SIZE, 3).astype(np.int32)
    noise = (grains[0] - grains[1]) * draws.below(24) // 255
    noisy = (np.asarray(image, np.int32) + noise).clip(0, 255).astype(np.uint8)
    return noisy.transpose(2, 0, 1), label


class _Draws:
    """A picture's random numbers, in the order they are asked for."""

    def __init__(self, words: list[int]):
        self._words = iter(words)

    def below(self, n: int) -> int:
        """Return a whole number of 0 to n - 1."""
        return (next(self._words) >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """Return a whole number of `low` to `high`."""
        return low + self.below(high - low + 1)


def _written(draws: _Draws, label: int) -> "Image.Image":
    """Return the mask of the digit in the middle and, often, of its neighbours, in one hand."""
    from PIL import ImageChops

    style, height, width = draws.below(STYLES), draws.between(17, 27), draws.between(70, 105)
    turn, slant = draws.between(-7, 7), draws.between(-22, 22)
    x, y = draws.between(-20, 20), draws.between(-20, 20)
    placed = _placed(glyph(style, label), height, width, turn, slant, x, y)
    apart = 72 * height * width // 1000 + draws.between(0, 20)
    for side in (-1, 1):
        shown, other = draws.below(10) < 6, draws.below(10)
        if shown:
            beside = _placed(glyph(style, other), height, width, turn, slant, x + side * apart, y)
            placed = ImageChops.lighter(placed, beside)
    return placed


def _placed(mask: "Image.Image", height: int, width: int, turn: int, slant: int, x: int, y: int) -> "Image.Image":
    """Return the glyph `height` pixels high and `width` per cent as wide, turned, slanted, and off the middle.

    `turn` is twice the tangent of half the angle, in 1/50; `slant` is in 1/100, `x` and `y` in 1/10 pixel.
    """
    from PIL import Image

    half = turn / 100
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    tall, wide, lean = HEIGHT / height, 100 * HEIGHT / (height * width), slant / 100
    across, down = (wide * (cos + lean * sin), wide * (-sin + lean * cos)), (tall * sin, tall * cos)
    middle_x, middle_y = SIZE / 2 + x / 10, SIZE / 2 + y / 10
    matrix = (
        *across, CELL / 2 - across[0] * middle_x - across[1] * middle_y,
        *down, CELL / 2 - down[0] * middle_x - down[1] * middle_y,
    )  # fmt: skip
    return mask.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _colours(draws: _Draws) -> tuple[list[int], list[int]]:
    """Return background and digit colour, at least 50 of 255 apart in brightness."""
    back = [draws.below(256) for _ in range(3)]
    tint, step = [draws.between(-40, 40) for _ in range(3)], draws.between(50, 170)
    bright = sum(back) // 3
    down = bright - step >= 0 and (bright + step > 255 or draws.below(2) == 1)
    middle = min(255, max(0, bright - step if down else bright + step))
    return back, [min(255, max(0, middle + shade)) for shade in tint]


def _slope(draws: _Draws) -> "NDArray[np.int32]":
    """Return what a slanting light adds to each pixel."""
    import numpy as np

    across, down = draws.between(-40, 40), draws.between(-40, 40)
    steps = np.arange(SIZE) - SIZE // 2
    return ((across * steps[None, :] + down * steps[:, None]) // SIZE).astype(np.int32)


def _stripe(draws: _Draws, ground: "NDArray[Any]") -> None:
    """Draw, one time in three, an upright or level bar behind the digit, as of a door or a row of bricks."""
    kind, start, width, shade = draws.below(6), draws.below(SIZE), draws.between(1, 6), draws.between(-70, 70)
    if kind == 0:
        ground[:, :, start : start + width] += shade
    elif kind == 1:
        ground[:, start : start + width, :] += shade


@cache
def glyph(style: int, digit: int) -> "Image.Image":
    """Return the digit's mask in one of the styles: plain, bold and hollow type, thin and thick pen, segments."""
    from PIL import Image, ImageChops, ImageDraw, ImageFont

    scale = 4
    canvas = Image.new("L", (CELL * scale, CELL * scale))
    draw = ImageDraw.Draw(canvas)
    if style < 3:
        font = ImageFont.load_default(HEIGHT * scale * 1.35)
        stroke, middle = (0, 10, 10)[style], (CELL * scale / 2, CELL * scale / 2)
        box = draw.textbbox((0, 0), str(digit), font=font, stroke_width=stroke)
        corner = (middle[0] - (box[0] + box[2]) / 2, middle[1] - (box[1] + box[3]) / 2)
        draw.text(corner, str(digit), 255, font, stroke_width=stroke)
        if style == 2:
            inside = Image.new("L", canvas.size)
            ImageDraw.Draw(inside).text((corner[0], corner[1]), str(digit), 255, font)
            canvas = ImageChops.subtract(canvas, inside)
    else:
        for points in _pen(style, digit):
            _line(draw, points, (0, 0, 0, 14, 28, 22)[style])
    return canvas.resize((CELL, CELL), Image.Resampling.BOX)


def _pen(style: int, digit: int) -> Iterator[list[tuple[float, float]]]:
    """Yield the digit's strokes on the canvas."""
    strokes = [STROKES[digit]] if style < 5 else [list(_SEGMENT_ENDS[name]) for name in SEGMENTS[digit]]
    left, top, wide, high = 60, 40, 72, 112
    for stroke in strokes:
        yield [(left + wide * x, top + high * y) for x, y in stroke]


def _line(draw: Any, points: list[tuple[float, float]], width: int) -> None:
    draw.line(points, 255, width, joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
