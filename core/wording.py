"""Numbers and names in words, as the model card and the command line both show them."""

from collections.abc import Mapping, Sequence
from typing import Any

LEAST_SHARE = 5e-4
"""Smaller ones are 0.0% in print."""

_MOST_NAMES = 3


def speed_change(before: float, after: float) -> str:
    """How much faster or slower something became, from the time it took before and after."""
    return f"{before / after:.2f}x faster" if after <= before else f"{after / before:.2f}x slower"


def some_of(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def against_target(target: Mapping[str, Any]) -> str:
    """What was asked for and what came of it, from a report's `target`; empty where one of the two is not known.

    A frontier as a whole asks for several models, each of its levels for one sparsity.
    """
    name, asked, achieved = target["name"], target["requested"], target["achieved"]
    if name is None or achieved is None or isinstance(asked, list):
        return ""
    what = "sparsity" if name == "frontier" else name
    return f"Asked for: {what} {_amount(asked)}; achieved: {_amount(achieved)} ({target['unit']})."


def _amount(value: float) -> str:
    """A count in full, a measure to four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
