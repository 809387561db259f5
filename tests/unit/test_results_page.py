"""The results page compares what can be compared, and refuses the rest."""

from typing import Any

import pytest

from benchmarks.quality import CASES, UNCOMPENSATED, runs
from benchmarks.quality_page import beside, check_dense_models


def result(dense: float, **also: Any) -> dict[str, Any]:
    line = {"case": "stsb", "seed": 0, "full": False, "dense": {"pearson": dense}, "pruned": {"pearson": 0.5}}
    return {**line, "headline": "pearson", "higher_is_better": True, **also}


def test_runs_of_one_case_and_seed_start_from_one_dense_model():
    check_dense_models([result(0.85), result(0.85 + 5e-7), result(0.7, seed=1), result(0.7, case="rte")])
    check_dense_models([result(0.85), result(0.86, full=True)])
    with pytest.raises(SystemExit, match="'stsb', False, 0"):
        check_dense_models([result(0.85), result(0.7, seed=1), result(0.851)])


def run(case: str, method: str, pruned: float, seed: int = 0) -> dict[str, Any]:
    return result(0.5, case=case, method=method, seed=seed, target=0.5) | {"pruned": {"pearson": pruned}}


def test_methods_are_compared_on_the_cases_and_seeds_that_both_have_run():
    """Kept, of a dense 0.5: 80 % and 60 % against 70 % and 30 %, so +10 and +30, with half their distance as error."""
    ours = [run("stsb", "neuroprune", 0.4), run("rte", "neuroprune", 0.3), run("rte", "neuroprune", 0.5, seed=1)]
    theirs = [run("stsb", "smart", 0.35), run("rte", "smart", 0.15), run("cola", "smart", 0.5)]
    assert beside(ours + theirs, "neuroprune", "smart", 0.5) == "50.0%, neuroprune 70.0% (+20.0 ± 10.0, 2 cases)"
    alone = beside(ours[:1] + theirs, "neuroprune", "smart", 0.5)
    assert alone == "70.0%, neuroprune 80.0% (+10.0, 1 case)"
    assert beside(ours, "neuroprune", "smart", 0.5) == "not run"


def test_neuroprune_runs_without_compensation_where_that_is_the_default():
    """At the same sparsities and seeds as with it."""
    for name, case in CASES.items():
        for seed in range(case.seeds):
            planned = {m: [s for method, s in runs(case, seed) if method == m] for m in ("neuroprune", UNCOMPENSATED)}
            expected = [] if name.startswith("t5") else planned["neuroprune"]
            assert sorted(planned[UNCOMPENSATED]) == sorted(expected)
