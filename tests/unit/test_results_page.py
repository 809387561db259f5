"""The results page refuses what cannot be compared."""

import pytest

from benchmarks.quality_page import check_dense_models


def result(dense: float, **also: object) -> dict[str, object]:
    line = {"case": "stsb", "seed": 0, "full": False, "dense": {"pearson": dense}, "pruned": {"pearson": 0.5}}
    return {**line, "headline": "pearson", "higher_is_better": True, **also}


def test_runs_of_one_case_and_seed_start_from_one_dense_model():
    check_dense_models([result(0.85), result(0.85 + 5e-7), result(0.7, seed=1), result(0.7, case="rte")])
    check_dense_models([result(0.85), result(0.86, full=True)])
    with pytest.raises(SystemExit, match="'stsb', False, 0"):
        check_dense_models([result(0.85), result(0.7, seed=1), result(0.851)])
