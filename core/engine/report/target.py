"""The report's `target` entry: what was asked for beside what was achieved, in the target's own unit."""

from typing import Any

from core.errors import VerificationError
from core.jobs.targets import AnyTarget, MetricDropTarget, ParametersTarget, SizeTarget, SpeedupTarget, name_of

SHARE = "share of the transformer layers' parameters, 0 … 1"


def describe_target(target: AnyTarget | None, report: dict[str, Any]) -> dict[str, Any]:
    """Name, `requested`, `achieved` and their unit; a job without a target has neither name nor request.

    Args:
        target: The job's.
        report: All else that was measured.
    """
    achieved, unit = _achieved(target, report)
    name = None if target is None else name_of(target)
    requested = None if target is None else getattr(target, name_of(target))
    return {"name": name, "requested": requested, "achieved": achieved, "unit": unit}


def check_met(target: AnyTarget | None, report: dict[str, Any]) -> None:
    """Refuse to deliver a model that is larger than was asked for.

    Raises:
        VerificationError: says by how much.
    """
    requested, achieved = (report["target"][key] for key in ("requested", "achieved"))
    if isinstance(target, ParametersTarget | SizeTarget) and achieved > requested:
        raise VerificationError(f"The model has {achieved:,} {report['target']['unit']}, more than {requested:,}.")


def drop(metric: dict[str, Any]) -> float:
    """By how much a metric of the report is worse after pruning, in its unit; negative where it is better."""
    loss: float = metric["dense"] - metric["pruned"]
    return loss if metric["higher_is_better"] else -loss


def speedup(report: dict[str, Any], runtime: str) -> float:
    """How many times as fast as dense the pruned model is, by median latency."""
    latency = report["latency_ms"][runtime]
    ratio: float = latency["dense"]["median"] / latency["pruned"]["median"]
    return ratio


def _achieved(target: AnyTarget | None, report: dict[str, Any]) -> tuple[float | None, str]:
    match target:
        case ParametersTarget():
            return report["parameters"]["total"]["pruned"], "parameters"
        case SizeTarget():
            return report["size_bytes"]["pruned"], "bytes"
        case SpeedupTarget():
            return speedup(report, target.runtime), "times as fast as dense"
        case MetricDropTarget():
            metric = report["metrics"].get(report["headline_metric"])
            return (None, "") if metric is None else (drop(metric), metric["unit"])
        case _:
            return report["sparsity"]["achieved"], SHARE
