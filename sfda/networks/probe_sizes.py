"""Which sizes a network takes: the small images that are tried, and what maps should come of them."""

from collections.abc import Iterable, Sequence

MULTIPLES = (1, 2, 4, 14, 28, 8, 16, 32, 64)
"""In the order in which they are tried; 14, the patch of DINOv2, before 8, of whose multiples it may look like 16."""
STRIDES = (1, 2, 4, 8, 14, 16, 32, 64)

Size = tuple[int, int]


def sizes_of(multiple: int) -> list[Size]:
    """Heights and widths of about 100, odd multiples: what needs a larger multiple fails at one of them.

    A multiple above 64 may be the one size that a network takes, and is tried alone.
    """
    if multiple > max(STRIDES):
        return [(multiple, multiple)]
    factors = [(_odd(67 // multiple), _odd(91 // multiple)), (_odd(81 // multiple), _odd(111 // multiple))]
    pairs = dict.fromkeys((first, second if second != first else second + 2) for first, second in factors)
    return [(multiple * first, multiple * second) for first, second in pairs]


def one_stride(sizes: Iterable[Size], maps: Iterable[Sequence[int]], multiple: int) -> bool:
    """Whether maps of these heights and widths are 1/s of the images in every direction, rounded up."""
    lengths = [pair for size, found in zip(sizes, maps, strict=True) for pair in zip(size, found, strict=True)]
    return any(all(_fits(*pair, stride) for pair in lengths) for stride in (*STRIDES, multiple))


def _fits(length: int, found: int, stride: int) -> bool:
    """ceil(length / stride); or, as pooling that rounds up gives it, one more where it divides."""
    return found == -(-length // stride) or (stride > 1 and found == length // stride + 1)


def _odd(number: int) -> int:
    return number | 1
