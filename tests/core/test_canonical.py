"""One text, and so one key, for one value."""

import pytest

from core.canonical import canonical_json, derive_seed, digest


def test_the_text_is_sorted_tight_and_utf8():
    assert canonical_json({"b": [1, 0.3, None, True], "a": "é"}) == '{"a":"é","b":[1,0.3,null,true]}'


def test_the_order_of_fields_does_not_matter_but_that_of_lists_does():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_numbers_that_json_lacks_have_no_key(value):
    with pytest.raises(ValueError, match="Out of range float values"):
        canonical_json(value)


def test_the_digest_is_the_sha256_of_the_text():
    # printf '{"a":1}' | sha256sum
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_derived_seeds_are_pinned_distinct_and_in_range():
    seeds = [derive_seed("recipe", seed) for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("recipe", 0) == int(digest(["recipe", 0])[:16], 16) // 2
    assert derive_seed("recipe", 1) != derive_seed("recipe1")


def test_minus_zero_is_zero():
    assert canonical_json({"a": [-0.0, (0.0, -1.5)]}) == '{"a":[0.0,[0.0,-1.5]]}'
