"""A front: Optuna is told of the score and of the style, and seeks cells that are good in either."""

import pytest
from planting import ASK, GRID, Planted, run, whole

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.study import CELL


def studied(work):
    import optuna

    return optuna.load_study(study_name=work.name, storage=f"sqlite:///{work / 'study.db'}")


def test_optuna_is_told_of_both_and_chooses_by_nsga_ii(tmp_path):
    """In a second run too, and its own front is that of the report, which reports the style apart."""
    run(tmp_path / "work", GRID[:2], Planted(tmp_path / "log"), whole(ASK), sampled=3, front=True)
    found = run(tmp_path / "work", GRID[:2], Planted(tmp_path / "log"), whole(ASK), sampled=9, front=True)
    study = studied(tmp_path / "work")
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert len(study.trials) == 2 + 9
    assert any("NSGAIISampler:generation" in trial.system_attrs or "nsga" in str(trial.system_attrs).lower()
               for trial in study.trials)  # fmt: skip
    front = {row.cell.lambdas for row in found.rows if row.front}
    assert found.best.cell.lambdas in front
    theirs = {tuple(trial.params.values()) for trial in study.best_trials}
    assert theirs & front
    assert {row.kind for row in found.front} == {CELL}


def test_a_study_has_a_front_or_has_none(tmp_path):
    run(tmp_path / "work", GRID[:2], Planted(tmp_path / "log"), whole(ASK))
    with pytest.raises(LcmMergeError, match="another front"):
        run(tmp_path / "work", GRID[:2], Planted(tmp_path / "log"), whole(ASK), front=True)
    assert len(studied(tmp_path / "work").directions) == 1
