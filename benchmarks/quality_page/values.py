"""What all sections read of a result, and how they write it."""

from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

Result = dict[str, Any]

OUT_OF_HUNDRED = ("bleu", "chrf")
"""Metrics that are given so."""


def of(results: Iterable[Result], **key: Any) -> list[Result]:
    """The results with these values."""
    return [result for result in results if key.items() <= result.items()]


def quality(result: Result, side: str) -> float:
    """The headline metric of the dense or pruned model; shares and correlations times 100, nats as they are."""
    value = float(result[side][result["headline"]])
    return value * (100 if result["higher_is_better"] and result["headline"] not in OUT_OF_HUNDRED else 1)


def kept_quality(result: Result) -> float:
    """What is left of the dense model's quality, 1 for all of it: the ratio, turned round where lower is better."""
    dense, pruned = quality(result, "dense"), quality(result, "pruned")
    return pruned / dense if result["higher_is_better"] else dense / pruned


def cell(values: list[float]) -> str:
    """The mean over seeds, with the standard deviation where there are several."""
    digits = 2 if max(values) > 10 else 3
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
