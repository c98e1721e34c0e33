"""Field types that specs share: exact pixel distances, bounded numbers."""

import re
import unicodedata
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_FRACTION = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?) ?/ ?([0-9]+)")
LONGEST = 80
FINEST = 10**30
"""Largest denominator of a pixel distance: what is accepted can be written as "a/b" and read again."""


def parse_pixels(value: Any) -> Fraction:
    """Return `value` as an exact fraction: 0.3, "0.3" and "3/10" are one number, "24/255" is not rounded.

    Raises:
        ValueError: the value is not a finite number or a fraction "a/b" with b above 0, or is finer than 1e-30.
    """
    expected = 'expected a number or a fraction such as 0.3 or "24/255" (pixel units, the image range is [0, 1])'
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(expected)
    if isinstance(value, int):
        return Fraction(value)
    text = value.strip() if isinstance(value, str) else repr(value)
    if len(text) > LONGEST:
        raise ValueError(expected)
    if quotient := _FRACTION.fullmatch(text):
        if int(quotient[2]) == 0:
            raise ValueError("the denominator is 0; " + expected)
        found = Fraction(quotient[1]) / int(quotient[2])
    elif _DECIMAL.fullmatch(text):
        found = Fraction(text)
    else:
        raise ValueError(expected)
    if found.denominator > FINEST:
        raise ValueError("is finer than 1e-30; " + expected)
    return found


def format_pixels(value: Fraction) -> str:
    """Return the one spelling of a pixel distance: "0.3" where the decimal is short, else "24/255", else "a/b"."""
    decimal = repr(float(value))
    if len(decimal) <= 8 and "e" not in decimal and Fraction(decimal) == value:
        return decimal.removesuffix(".0")
    if 255 % value.denominator == 0:
        return f"{value.numerator * (255 // value.denominator)}/255"
    return f"{value.numerator}/{value.denominator}"


def _within(low: Fraction, high: Fraction) -> BeforeValidator:
    def check(value: Any) -> Fraction:
        pixels = parse_pixels(value)
        if not low <= pixels <= high:
            got = str(value) if not isinstance(value, int) or abs(value) < 10**9 else "a huge number"
            raise ValueError(f"must lie in [{format_pixels(low)}, {format_pixels(high)}] (pixel units), got {got}")
        return pixels

    return BeforeValidator(check)


UNSEEN = ("Cc", "Cf", "Zl", "Zp")
"""Categories of Unicode that show nothing, and may turn or break the line they stand in."""
JOINERS = "\u200c\u200d"
"""Of those, what languages and emoji are written with."""


def seen(text: str) -> str:
    """Return `text`, of which a reader sees every character.

    Raises:
        ValueError: one controls a terminal, the direction of the text or the line, or is not to be seen.
    """
    for character in text:
        if unicodedata.category(character) in UNSEEN and character not in JOINERS:
            raise ValueError(f"holds a control character (U+{ord(character):04X})")
    return text


_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(/[1-9][0-9]*)?$"},
    ],
    "description": "Distance in pixel units of the image range [0, 1], 0 to 1; a number or a fraction such as "
    '"24/255".',
    "examples": [0.3, "24/255"],
}

Pixels = Annotated[
    Fraction,
    _within(Fraction(0), Fraction(1)),
    PlainSerializer(format_pixels, return_type=str),
    WithJsonSchema(_SCHEMA),
]
"""A distance in pixel units, exact, in [0, 1]."""

Count = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
"""A whole number of at least 1."""

MAX_SEED = 2**31 - 1
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Number = Annotated[float, Field(strict=True)]
"""A number: neither true nor a string that looks like one."""
Flag = Annotated[bool, Field(strict=True)]
"""True or false: neither a number nor a word that means one."""
Share = Annotated[Number, Field(ge=0, le=1)]
"""A weight or a share in [0, 1]."""
