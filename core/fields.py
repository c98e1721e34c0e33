"""Field types that specs share: exact pixel distances, bounded numbers."""

from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema


def parse_pixels(value: Any) -> Fraction:
    """Return `value` as an exact fraction: 0.3, "0.3" and "3/10" are one number, "24/255" is not rounded.

    Raises:
        ValueError: the value is not a finite number or a fraction "a/b" with b above 0.
    """
    expected = 'expected a number or a fraction such as 0.3 or "24/255" (pixel units, the image range is [0, 1])'
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(expected)
    text = value if isinstance(value, str) else repr(value)
    if len(text) > 40:
        raise ValueError(expected)
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise ValueError("the denominator is 0; " + expected) from None
    except ValueError:
        raise ValueError(expected) from None


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
            raise ValueError(f"must lie in [{format_pixels(low)}, {format_pixels(high)}] (pixel units), got {value}")
        return pixels

    return BeforeValidator(check)


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

Seed = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
"""A weight or a share in [0, 1]."""
