"""Numbers and names in words, as the model card and the command line both show them."""

from collections.abc import Sequence

_MOST_NAMES = 3


def speed_change(before: float, after: float) -> str:
    """How much faster or slower something became, from the time it took before and after."""
    return f"{before / after:.2f}x faster" if after <= before else f"{after / before:.2f}x slower"


def some_of(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
