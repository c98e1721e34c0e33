"""Per-example bits: worst cases and discordant pairs, by hand and by their properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.bits import Bits, discordant, worst_case

ROWS = st.integers(1, 40).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)
)


def of(row: list[bool]) -> Bits:
    return Bits(len(row), int("".join(str(int(right)) for right in row), 2))


def test_right_only_where_right_under_every_attack():
    fgsm, ifgsm = Bits(4, 0b1100), Bits(4, 0b1010)
    assert worst_case(fgsm, ifgsm) == Bits(4, 0b1000)
    assert worst_case(fgsm) == fgsm
    assert discordant(fgsm, ifgsm) == (1, 1)
    assert discordant(Bits(4, 0b1110), ifgsm) == (1, 0)


@given(ROWS)
def test_never_above_any_attack_and_blind_to_order(rows: list[list[bool]]):
    bits = [of(row) for row in rows]
    assert worst_case(*bits) == of([all(column) for column in zip(*rows, strict=True)])
    assert worst_case(*bits) == worst_case(*reversed(bits))
    assert worst_case(*bits).n_right <= min(one.n_right for one in bits)


@given(ROWS)
def test_discordant_pairs_are_the_difference_of_the_counts(rows: list[list[bool]]):
    first, second = of(rows[0]), of(rows[-1])
    only_first, only_second = discordant(first, second)
    assert only_first - only_second == first.n_right - second.n_right
    assert only_first == sum(a and not b for a, b in zip(rows[0], rows[-1], strict=True))


def test_packed_bits_begin_with_the_first_example():
    assert Bits.unpacked(b"\x80", 3) == Bits(3, 0b100)
    assert Bits.unpacked(b"\xff\x80", 9).n_right == 9


@pytest.mark.parametrize(("data", "n"), [(b"", 1), (b"\x80\x00", 3), (b"\x81", 7), (b"\xff", 9)])
def test_bytes_that_are_not_one_bit_each_are_refused(data: bytes, n: int):
    with pytest.raises(ValueError, match=f"not one bit for each of {n}"):
        Bits.unpacked(data, n)


def test_other_numbers_of_examples_do_not_meet():
    with pytest.raises(ValueError, match="at least one attack"):
        worst_case()
    for meet in (worst_case, discordant):
        with pytest.raises(ValueError, match=r"different numbers of examples: \[1, 2\]"):
            meet(Bits(1, 1), Bits(2, 1))
