"""The results page compares what can be compared, and refuses the rest."""

from pathlib import Path
from typing import Any

import pytest

import benchmarks.quality
from benchmarks.quality import CASES, UNCOMPENSATED, runs
from benchmarks.quality_page.__main__ import check
from benchmarks.quality_page.matrix import beside, one_sided
from benchmarks.quality_page.values import quality
from core.jobs.defaults import COMPENSATES


def result(dense: float, **also: Any) -> dict[str, Any]:
    run = {"case": "stsb", "seed": 0, "full": False, "dense": {"pearson": dense}, "pruned": {"pearson": 0.5}}
    return {**run, "headline": "pearson", "higher_is_better": True, **also}


def test_runs_of_one_case_and_seed_start_from_one_dense_model() -> None:
    one = result(0.85, method="neuroprune", target=0.5)
    check([one, result(0.85 + 5e-9, method="smart", target=0.5), result(0.7, seed=1, method="smart", target=0.5)])
    check([one, result(0.86, full=True, method="neuroprune", target=0.5)])
    with pytest.raises(SystemExit, match=r"'stsb', False, 0.*start from different dense models"):
        check([one, result(0.85 + 5e-8, method="smart", target=0.5)])


def test_a_run_that_is_there_twice_is_refused() -> None:
    one = result(0.85, method="importance", target=0.5)
    check([one, result(0.85, method="importance", target=0.7)])
    with pytest.raises(SystemExit, match=r"twice.*'importance', 0.5, 0"):
        check([one, result(0.85, method="importance", target=0.5, options={"head_exponent": 1.6})])


def line(case: str, method: str, pruned: float, seed: int = 0) -> dict[str, Any]:
    return result(0.5, case=case, method=method, seed=seed, target=0.5) | {"pruned": {"pearson": pruned}}


def test_methods_are_compared_on_the_cases_and_seeds_that_both_have_run() -> None:
    """Kept, of a dense 0.5: 80 and 60 % against 70 and 30 %, so a lead of 10 and of 30 points."""
    ours = [line("stsb", "neuroprune", 0.4), line("rte", "neuroprune", 0.3), line("rte", "neuroprune", 0.5, seed=1)]
    theirs = [line("stsb", "smart", 0.35), line("rte", "smart", 0.15), line("cola", "smart", 0.5)]
    assert beside(ours + theirs, "neuroprune", "smart", 0.5) == "50.0%, 70.0% (+20.0, 2 cases)"
    assert beside(ours[:1] + theirs, "neuroprune", "smart", 0.5) == "70.0%, 80.0% (+10.0, 1 case)"
    assert beside(ours, "neuroprune", "smart", 0.5) == "not run"
    # Two cases more with a lead of 20: deviations of -10, 10, 0, 0, so 8.165 of a single case and half of it of four.
    more = [
        line(case, method, kept / 2)
        for case in ("cola", "sst2")
        for method, kept in (("neuroprune", 0.7), ("smart", 0.5))
    ]
    assert beside([*ours, *theirs[:2], *more], "neuroprune", "smart", 0.5) == "50.0%, 70.0% (+20.0 ± 4.1, 4 cases)"


def test_what_is_better_with_every_seed_is_named() -> None:
    pruned = {"stsb": ([0.4, 0.3, 0.2], 0.35), "rte": ([0.1, 0.2, 0.3], 0.05), "cola": ([0.1, 0.2, 0.3], 0.35)}
    rows = [
        line(case, method, value, seed)
        for case, (ours, theirs) in pruned.items()
        for seed, mine in enumerate(ours)
        for method, value in (("neuroprune", mine), ("smart", theirs))
    ]
    behind, ahead = one_sided(rows)
    assert behind.startswith("Behind, with every seed")
    assert behind.endswith("smart at 50% on MiniLM, CoLA (3).")
    assert ahead.endswith("smart at 50% on MiniLM, RTE (3).")
    assert one_sided([row for row in rows if row["seed"] < 2]) == []


def test_shares_are_shown_times_100_and_bleu_as_it_is() -> None:
    assert quality(result(0.85), "dense") == 85
    assert quality({**result(0.85), "dense": {"bleu": 0.85}, "headline": "bleu"}, "dense") == 0.85


def test_neuroprune_runs_without_compensation_where_that_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same sparsities and with the same seeds as with it."""
    for builder in ("gpt2", "t5"):
        monkeypatch.setattr(benchmarks.quality, builder, lambda folder, rows: folder)
    for case in CASES.values():
        trial = case.trial(Path("data"), Path("work"))
        assert case.compensates is (trial.task["name"] in COMPENSATES)
        for seed in range(case.seeds):
            planned = {m: [s for method, s in runs(case, seed) if method == m] for m in ("neuroprune", UNCOMPENSATED)}
            assert sorted(planned[UNCOMPENSATED]) == (sorted(planned["neuroprune"]) if case.compensates else [])
