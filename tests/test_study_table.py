"""What a study says in the terminal: one line a trial, and no line that lies about the best."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from eomt_exp.studies.table import Row, StudyTable, clock, front, seconds_saved, short_names, shown


def row(
    number: int, value: float | tuple[float, ...] | None, state="complete", seconds=10.0, **more
):
    values = (value,) if isinstance(value, float) else value
    params = more.pop("params", {"optim.lr": 0.00012345678})
    return Row(number, str(number), state, values, params, seconds, **more)


def table(objective=None, n_trials=10, at_once=1, width=300, terminal=False):
    file = io.StringIO()
    colours = {"force_terminal": True, "color_system": "truecolor"} if terminal else {}
    console = Console(file=file, width=width, highlight=False, **colours)
    given = objective or {"val/ap": "maximize"}
    return StudyTable(given, n_trials, at_once, console, name="lr"), file


def line_of(file: io.StringIO, number: int) -> list[str]:
    lines = [line.split() for line in file.getvalue().splitlines()]
    return next(words for words in lines if words and words[0] == str(number))


def test_a_star_marks_the_trial_that_is_best_so_far():
    study, file = table()
    study.start()
    for number, value in enumerate((0.25, 0.125, 0.5)):
        study.add(row(number, value))
    assert line_of(file, 0)[2:4] == ["0.25", "0.25*"]
    assert line_of(file, 1)[2:4] == ["0.125", "0.25"]
    assert line_of(file, 2)[2:4] == ["0.5", "0.5*"]


def test_of_equal_trials_the_first_one_made_it():
    study, file = table()
    study.start()
    study.add(row(0, 0.5))
    study.add(row(1, 0.5))
    assert [line_of(file, n)[3] for n in (0, 1)] == ["0.5*", "0.5"]


def test_less_is_better_where_the_study_minimises():
    study, file = table({"val/fpr95": "minimize"})
    study.start()
    for number, value in enumerate((0.25, 0.125, 0.5)):
        study.add(row(number, value))
    assert "minimise val/fpr95" in file.getvalue()
    assert line_of(file, 1)[2:4] == ["0.125", "0.125*"]
    assert line_of(file, 2)[2:4] == ["0.5", "0.125"]


def test_a_pruned_trial_shows_its_last_value_in_brackets_and_is_never_the_best():
    study, file = table()
    study.start()
    study.add(row(0, 0.25))
    study.add(row(1, 0.9, "pruned"))
    assert line_of(file, 1)[1:4] == ["pruned", "(0.9)", "0.25"]


def test_a_failed_trial_says_why_on_a_line_of_its_own():
    study, file = table()
    study.start()
    study.add(row(0, None, "failed", note="CUDA out of\nmemory"))
    assert line_of(file, 0)[1:4] == ["failed", "-", "-"]
    assert "0: CUDA out of memory" in file.getvalue()


def test_time_left_is_the_median_times_what_is_left_over_those_at_once():
    study, file = table(n_trials=10, at_once=2)
    study.start([row(0, 0.1, seconds=100.0), row(1, 0.2, seconds=60.0)])
    study.add(row(2, 0.3, seconds=300.0))
    # Median 100 s, 7 trials left, 2 at once.
    assert line_of(file, 2)[4:6] == ["0:05:00", "0:05:50"]
    assert "2 at once" in file.getvalue()


def test_failures_do_not_count_as_a_usual_time():
    study, file = table(n_trials=3)
    study.start()
    study.add(row(0, None, "failed", seconds=1.0))
    assert line_of(file, 0)[5] == "?"
    study.add(row(1, 0.5, seconds=60.0))
    assert line_of(file, 1)[5] == "0:01:00"


def test_of_earlier_trials_the_last_few_are_shown_and_all_count():
    study, file = table(n_trials=20)
    study.start([row(n, 0.9 if n == 0 else 0.1) for n in range(12)])
    lines = file.getvalue().splitlines()
    assert "12 done before (12 complete)" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["7", "8", "9", "10", "11"]
    study.add(row(12, 0.5))
    assert line_of(file, 12)[3] == "0.9"


def test_several_objectives_show_the_size_of_the_front():
    study, file = table({"val/ap": "maximize", "gflops": "minimize"})
    study.start()
    study.add(row(0, (0.5, 10.0)))
    study.add(row(1, (0.6, 20.0)))
    study.add(row(2, (0.4, 30.0)))
    study.add(row(3, (0.7, 5.0)))
    assert [line_of(file, n)[4] for n in range(4)] == ["1*", "2*", "2", "1*"]


def test_the_front_keeps_equals_and_drops_what_is_beaten():
    rows = [row(0, (1.0, 1.0)), row(1, (1.0, 1.0)), row(2, (1.0, 2.0)), row(3, (0.0, 0.5))]
    kept = front(rows, ["maximize", "minimize"])
    assert [one.number for one in kept] == [0, 1, 3]


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_are_cut_and_coloured_on_terminals_only(terminal):
    study, file = table(width=60, terminal=terminal)
    study.start()
    study.add(row(0, 0.5, params={f"part{n}.weight{n}": 0.5 for n in range(20)}))
    text = file.getvalue()
    assert ("\x1b[" in text) is terminal
    assert ("weight19=0.5" in text) is not terminal
    assert len(text.splitlines()) == 3  # nothing wraps either way


def test_the_closing_table_has_the_best_five_with_all_parameters():
    study, file = table()
    names = {"optim.lr": 0.1, "loss.outlier_margin.weight": 3}
    rows = [row(n, n / 10, params=names) for n in range(8)] + [row(8, 0.95, "pruned", 4.0)]
    study.finish(rows)
    text = file.getvalue()
    assert "9 trials: 8 complete, 1 pruned (11 % pruned)" in text
    assert "0:01:24 of trials, pruning saved about 0:00:06" in text
    head = next(line for line in text.splitlines() if "trial " in line and "┃" in line)
    assert head.replace("┃", " ").split() == ["trial", "7", "6", "5", "4", "3"]
    assert "loss.outlier_margin.weight" in text


def test_a_narrow_terminal_gets_parts_with_whole_names():
    study, file = table(width=70)
    study.finish([row(n, n / 10, params={"loss.isotropy_penalty.weight": 0.5}) for n in range(5)])
    text = file.getvalue()
    assert text.count("loss.isotropy_penalty.weight") == 3  # two trials and two and one
    assert max(map(len, text.splitlines())) <= 70


def test_the_closing_table_shows_the_whole_front():
    study, file = table({"val/ap": "maximize", "gflops": "minimize"})
    study.finish([row(n, (n / 10, float(n))) for n in range(7)] + [row(7, (0.0, 9.0))])
    text = file.getvalue()
    assert "Pareto front, 7 trials" in text
    heads = [line.replace("┃", " ").split() for line in text.splitlines() if "┃ trial" in line]
    assert heads == [["trial", "6", "5", "4", "3", "2"], ["trial", "1", "0"]]


def test_a_study_without_a_complete_trial_says_so():
    study, file = table()
    study.finish([row(0, None, "failed"), row(1, 0.3, "pruned")])
    assert "no trial is complete" in file.getvalue()


def test_pruning_saved_nothing_that_can_be_known_without_a_complete_trial():
    assert seconds_saved([row(0, 0.1, "pruned", 5.0)]) == 0
    slow = [row(0, 0.1, seconds=10.0), row(1, 0.1, "pruned", 4.0), row(2, 0.1, "pruned", 30.0)]
    assert seconds_saved(slow) == 6  # one that took longer than usual saves nothing, costs nothing


def test_names_are_as_short_as_tells_them_apart():
    keys = ["optim.lr", "loss.a.weight", "loss.b.weight", "+anomaly_head", "val/ap"]
    assert list(short_names(keys).values()) == ["lr", "a.weight", "b.weight", "anomaly_head", "ap"]
    assert short_names(["weight", "a.weight"]) == {"weight": "weight", "a.weight": "a.weight"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-05"), (0.123456, "0.1235"), (3, "3"), (True, "true"), (None, "null"),
     (["a", 0.5], "[a,0.5]"), ("1", "1")],
)  # fmt: skip
def test_values_read_as_they_are_typed(value, text):
    assert shown(value) == text


def test_the_clock_carries_hours():
    assert clock(12 * 60 + 30) == "0:12:30"
    assert clock(3723.4) == "1:02:03"
    assert clock(None) == "?"
