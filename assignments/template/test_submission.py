"""The points as plain tests: COURSE=the/course pytest test_submission.py"""

import os
from pathlib import Path

import pytest
from ddpp_course.grade import grade

FILES = sorted(Path("submission").glob("*.ipynb"))
COURSE = Path(os.environ.get("COURSE", "course"), "assignments")
REPORTS = [grade(path, COURSE) for path in FILES]  # each on its own
CHECKED = [o for r in REPORTS for o in r.outcomes if o.points is not None]


def test_there_is_a_notebook_and_it_can_be_graded():
    assert REPORTS
    assert [report.refused for report in REPORTS if report.refused] == []


@pytest.mark.parametrize("outcome", CHECKED, ids=lambda outcome: outcome.task)
def test_no_point_is_missing(outcome):  # texts are graded by hand: no test
    assert outcome.points == outcome.of, outcome.says
