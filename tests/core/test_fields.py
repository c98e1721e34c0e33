"""Pixel distances are exact, have one spelling, and can be read back whatever was accepted."""

import contextlib
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from core.fields import FINEST, Count, Pixels, Seed, Share, format_pixels, parse_pixels

pixels: TypeAdapter[Fraction] = TypeAdapter(Pixels)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0.3, Fraction(3, 10)), ("0.3", Fraction(3, 10)), ("3/10", Fraction(3, 10)), ("0.30", Fraction(3, 10)),
        (" 3 / 10 ", Fraction(3, 10)), ("24/255", Fraction(8, 85)), ("8/255", Fraction(8, 255)), (0, Fraction(0)),
        (1, Fraction(1)), ("1", Fraction(1)), (".5", Fraction(1, 2)), ("0.5/255", Fraction(1, 510)),
        ("1e-2", Fraction(1, 100)), ("3E-1", Fraction(3, 10)), ("5.e-1", Fraction(1, 2)), ("+0.5", Fraction(1, 2)),
    ],
)  # fmt: skip
def test_what_is_written_is_meant_exactly(written: Any, meant: Fraction):
    assert parse_pixels(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "abc", "", " ", "/", "1/", "/2", "1/2/3", "0x1", "1_0", "nan", "inf", "-inf", float("nan"), float("inf"), True,
        None, [0.3], {}, b"0.3", "24/0", "0/0", "1e", "1e9999", "1e999999999", "1e-9999", "1" * 81, "1/" + "9" * 79,
        "1e-31", "0.3\0", "\u0663", "1.2.3", "24/-255", "1/2e3",
    ],
)  # fmt: skip
def test_what_is_no_distance_is_refused(written: Any):
    with pytest.raises(ValueError, match="expected a number or a fraction"):
        parse_pixels(written)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(3, 10), "0.3"), (Fraction(8, 85), "24/255"), (Fraction(8, 255), "8/255"), (Fraction(1), "1"),
        (Fraction(0), "0"), (Fraction(1, 3), "85/255"), (Fraction(1, 510), "1/510"), (Fraction(1, 100), "0.01"),
        (Fraction(1, 10**6), "1/1000000"),
    ],
)  # fmt: skip
def test_a_distance_has_one_spelling(value: Fraction, text: str):
    assert format_pixels(value) == text


accepted = st.one_of(
    st.floats(0, 1),
    st.fractions(0, 1, max_denominator=FINEST),
    st.from_regex(r"0\.[0-9]{1,35}", fullmatch=True),
    st.from_regex(r"[0-9]{1,3}(\.[0-9])?/[1-9][0-9]{0,30}", fullmatch=True),
    st.from_regex(r"[0-9]\.[0-9]{1,17}e-[0-9]{1,2}", fullmatch=True),
)


@given(accepted)
@settings(max_examples=300)
def test_whatever_is_accepted_can_be_written_and_read_again(written: Any):
    try:
        value = pixels.validate_python(written)
    except ValidationError:
        return
    assert pixels.validate_python(pixels.dump_python(value)) == value
    assert format_pixels(parse_pixels(format_pixels(value))) == format_pixels(value)


@given(st.one_of(st.text(max_size=90), st.integers(), st.floats(), st.from_regex(r"[0-9eE+./-]{1,12}", fullmatch=True)))
@settings(max_examples=300)
def test_anything_else_is_a_validation_error_and_takes_no_time(written: Any):
    with contextlib.suppress(ValidationError):
        assert 0 <= pixels.validate_python(written) <= 1


def test_every_float_that_a_program_is_likely_to_send_is_accepted():
    for numerator in range(256):
        for divisor in (255, 510, 2550, 7):
            value = min(1.0, numerator / divisor)
            assert float(pixels.validate_python(value)) == value


class Numbers(BaseModel):
    count: Count = 1
    seed: Seed = 0
    share: Share = 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 0}, {"count": True}, {"count": 1.0}, {"count": "1"}, {"count": 10_000_001}, {"seed": -1},
        {"seed": 2**31}, {"seed": False}, {"share": 1.1}, {"share": -0.1}, {"share": True}, {"share": "0.5"},
        {"share": float("nan")},
    ],
)  # fmt: skip
def test_numbers_are_neither_booleans_nor_texts_nor_out_of_bounds(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        Numbers.model_validate(fields)


def test_a_share_may_be_written_as_a_whole_number():
    assert Numbers(share=1, count=10_000_000, seed=2**31 - 1).share == 1.0
