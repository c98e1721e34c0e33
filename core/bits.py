"""One bit per example, as evaluations store them: worst cases over attacks, and pairs of models.

Whole numbers throughout, so that the API can count without numpy.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bits:
    """Which of `n` examples a model got right: one bit each in `right`, the first example in the highest."""

    n: int
    right: int

    @classmethod
    def unpacked(cls, data: bytes, n: int) -> "Bits":
        """Return what `core.evaluation.correct_bits` packed of n examples.

        Raises:
            ValueError: these bytes are not one bit for each of n examples.
        """
        whole, padding = int.from_bytes(data, "big"), -n % 8
        if len(data) != (n + 7) // 8 or whole % 2**padding:
            raise ValueError(f"{len(data)} bytes are not one bit for each of {n} examples")
        return cls(n, whole >> padding)

    @property
    def n_right(self) -> int:
        """How many are right."""
        return self.right.bit_count()


def worst_case(*correct: Bits) -> Bits:
    """Return which examples are right under every attack; their share is the worst-case accuracy.

    Raises:
        ValueError: there is no attack, or the attacks were evaluated on different numbers of examples.
    """
    if not correct:
        raise ValueError("a worst case needs at least one attack")
    sizes = sorted({bits.n for bits in correct})
    if len(sizes) > 1:
        raise ValueError(f"the attacks were evaluated on different numbers of examples: {sizes}")
    right = correct[0].right
    for bits in correct[1:]:
        right &= bits.right
    return Bits(sizes[0], right)


def discordant(first: Bits, second: Bits) -> tuple[int, int]:
    """Return how many examples only the first got right, and how many only the second.

    Raises:
        ValueError: they were evaluated on different numbers of examples.
    """
    if first.n != second.n:
        raise ValueError(f"the models were evaluated on different numbers of examples: {[first.n, second.n]}")
    return (first.right & ~second.right).bit_count(), (second.right & ~first.right).bit_count()
