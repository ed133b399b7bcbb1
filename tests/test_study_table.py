"""What a study says in the terminal: one line a trial, and no line that lies about the best."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from eomt_exp.studies.table import StudyTable, short_names, shown
from eomt_exp.studies.trials import Row


def row(
    number: int, value: float | tuple[float, ...] | None, state="complete", seconds=10.0, **more
):
    values = (value,) if isinstance(value, float) else value
    return Row(number, str(number), state, values, {"optim.lr": 0.00012345678}, seconds, **more)


def table(objective=None, n_trials=10, at_once=1, width=300):
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False)
    return StudyTable(objective or {"val/ap": "maximize"}, n_trials, at_once, "lr", console), file


def line_of(file: io.StringIO, number: int) -> list[str]:
    lines = [line.split() for line in file.getvalue().splitlines()]
    return next(cells for cells in lines if cells and cells[0] == str(number))


def test_a_star_marks_the_best_trial_and_a_pruned_one_stands_in_brackets():
    study, file = table()
    first, second, pruned = row(0, 0.25), row(1, 0.5), row(2, 0.9, "pruned")
    study.start([], [])
    study.add(first, [first])
    study.add(second, [second, first])
    study.add(pruned, [second, first])
    assert line_of(file, 0)[1:4] == ["complete", "0.25", "0.25*"]
    assert line_of(file, 1)[1:4] == ["complete", "0.5", "0.5*"]
    assert line_of(file, 2)[1:4] == ["pruned", "(0.9)", "0.5"]


def test_a_failed_trial_says_why_on_a_line_of_its_own():
    study, file = table()
    study.add(row(0, None, "failed", note="CUDA out of\nmemory"), [])
    assert line_of(file, 0)[1:4] == ["failed", "-", "-"]
    assert "0: CUDA out of memory" in file.getvalue()


def test_time_left_is_the_median_times_what_is_left_over_those_at_once():
    study, file = table(n_trials=10, at_once=2)
    study.start([row(0, 0.1, seconds=100.0), row(1, 0.2, seconds=60.0)], [])
    study.add(row(2, None, "failed", seconds=1.0), [])  # a failure says nothing about times
    study.add(row(3, 0.3, seconds=300.0), [])
    # Median 100 s, 6 trials left, 2 at once.
    assert line_of(file, 3)[4:6] == ["0:05:00", "0:05:00"]
    assert "2 at once" in file.getvalue()


def test_of_earlier_trials_the_last_few_are_shown_and_all_count():
    study, file = table(n_trials=20)
    study.start([row(n, 0.1) for n in range(12)], [])
    lines = file.getvalue().splitlines()
    assert "12 done before (12 complete)" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["7", "8", "9", "10", "11"]


def test_several_objectives_show_the_size_of_the_front():
    study, file = table({"val/ap": "maximize", "gflops": "minimize"})
    front = [row(0, (0.5, 10.0)), row(1, (0.6, 20.0))]
    beaten = row(2, (0.4, 30.0))
    study.add(front[1], front)
    study.add(beaten, front)
    assert [line_of(file, n)[4] for n in (1, 2)] == ["2*", "2"]


def test_the_closing_table_has_the_best_five_with_all_parameters():
    study, file = table()
    best = [row(n, n / 10) for n in range(7, -1, -1)]
    study.finish([*best, row(8, 0.95, "pruned", 4.0)], best)
    text = file.getvalue()
    assert "9 trials: 8 complete, 1 pruned (11 % pruned); 0:01:24 of trials" in text
    head = next(line for line in text.splitlines() if "trial " in line and "┃" in line)
    assert head.replace("┃", " ").split() == ["trial", "7", "6", "5", "4", "3"]
    assert "optim.lr" in text
    study.finish([row(0, None, "failed")], [])
    assert "no trial is complete" in file.getvalue()


def test_names_are_as_short_as_makes_them_distinct():
    keys = ["optim.lr", "loss.a.weight", "loss.b.weight", "+anomaly_head"]
    assert list(short_names(keys).values()) == ["lr", "a.weight", "b.weight", "+anomaly_head"]
    assert short_names(["weight", "a.weight"]) == {"weight": "weight", "a.weight": "a.weight"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-05"), (0.123456, "0.1235"), (3, "3"), (True, "true"), (None, "null"), ("a", "a")],
)
def test_values_read_as_they_are_typed(value, text):
    assert shown(value) == text
