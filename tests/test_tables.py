"""Tables of a leaderboard say what was measured, in every form people take away."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace

import leaderboard_example
import pytest
from leaderboard_example import BENCHMARKS, MODELS, NOTE, SCORERS, WARNING, leaderboard
from rich.console import Console

from eomt_exp.evaluator.metrics import METRICS, Metric, flagged
from eomt_exp.files import write_text
from eomt_exp.report.latex import as_latex, escaped
from eomt_exp.report.leaderboard import Leaderboard, PublishedResult
from eomt_exp.report.published import published_for
from eomt_exp.report.tables import number, over_seeds
from eomt_exp.report.terminal import (
    print_report,
    results_table,
    rich_table,
    write_metrics,
)
from eomt_exp.report.text_tables import as_csv, as_markdown
from eomt_exp.tasks.publish import publish
from eomt_exp.tracking.run import Tracker


@pytest.fixture
def board() -> Leaderboard:
    board = leaderboard()
    board.title = "A & B"
    return board


def rows_of(board) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(board))))


def test_csv_reads_back_to_the_very_numbers(board):
    rows = rows_of(board)
    assert len(rows) == len(MODELS) * (len(SCORERS) * len(BENCHMARKS) + 1)
    for row, result in zip(rows, board.results, strict=False):
        named = tuple(row[key] for key in ("benchmark", "model", "scorer", "warnings"))
        assert named == (result.benchmark, result.model, result.scorer, WARNING)
        low, high = ({f"{key}_{end}": interval[i] for key, interval in result.intervals.items()}
                     for i, end in enumerate(("low", "high")))  # fmt: skip
        wanted = result.metrics | low | high
        assert {key: float(row[key]) for key in wanted} == pytest.approx(wanted, 0, 0, nan_ok=True)


def test_csv_has_a_row_of_known_classes_for_every_model(board):
    rows = rows_of(board)[-len(MODELS) :]
    for row, (model, known) in zip(rows, board.known_classes.items(), strict=True):
        named = (row["benchmark"], row["protocol"], row["model"], row["scorer"], row["warnings"])
        assert named == ("data.val", "default", model, "", WARNING)
        keys = flagged("known")
        assert [float(row[key]) for key in keys] == [known[key] for key in keys]
        assert row["ap"] == "" != row["category_miou"]
        assert not any("iou_" in key for key in row)  # single classes are in metrics.json


def test_csv_keeps_odd_names_and_unmeasured_and_undefined_apart(board):
    del board.results[0].metrics["siou"]
    board.results[0].model = 'a,"b"\n'
    rows = rows_of(board)
    assert (rows[0]["model"], rows[0]["siou"]) == ('a,"b"\n', "")
    assert rows[len(board.results) - 1]["ppv"] == "nan"


def test_markdown_warns_before_it_shows_a_number(board):
    text = as_markdown(board)
    assert text.index(WARNING.replace("_", r"\_")) < text.index("| method |")
    result = board.results[0]
    low, high = result.intervals["ap"]
    first, second = board.known_classes.values()
    for expected in (
        f"**{result.metrics['ap']:.3f}** [{low:.3f}, {high:.3f}]",
        *("undefined", "0.612 ± 0.013", "README of RbA", "Protocol: default.", f"Note: {NOTE}"),
        *(f"{first['miou']:.3f}", "| category mIoU |"),
        f"| **{first['aacc']:.3f}** | **{first['category_miou']:.3f}** |",
        f"| traffic sign | **{first['iou_traffic_sign']:.3f}** |",
        f"** | {second['iou_traffic_sign']:.3f} |",
        f"| flat | **{first['category_iou_flat']:.3f}** | {second['category_iou_flat']:.3f} |",
    ):
        assert expected in text
    assert "nan" not in text


@pytest.mark.parametrize("ends", [(0.0016, 0.0009, 0.0024), (0.9981, 0.9962, 0.9989)])
def test_an_interval_never_leaves_out_its_own_value(board, ends):
    value, low, high = ends
    metrics = {"a/rba/ap": value}
    board.results[0].metrics["ap"], board.results[0].intervals["ap"] = value, (low, high)
    terminal = printed(results_table(metrics, intervals={"a/rba/ap": (low, high)}))
    entry = number("ap", value, (low, high))
    cell = f"{entry.text} {entry.below}"
    for text in (terminal, as_markdown(board), cell):
        read = re.search(r"(0\.\d+)\W.*?\[(0\.\d+), (0\.\d+)\]", text)
        shown, least, most = map(float, read.groups())
        assert least < shown < most


def test_latex_is_escaped_and_bold_where_best(board):
    odd = replace(board.results[0], model=r"50% of_a$b#c & {d}\e~^")
    board.results.append(odd)
    text = as_latex(board)
    assert r"\caption{A \& B (protocol: default)$^{\dagger}$}" in text
    name = r"50\% of\_a\$b\#c \& \{d\}\textbackslash{}e\textasciitilde{}\textasciicircum{}"
    assert name in text
    assert r"synth\_anomaly" in text
    assert text.index(r"\end{tabular}") < text.index(r"were seen in training")
    assert rf"\footnotesize {NOTE}" in text  # no dagger: it does not discredit the numbers
    first = next(line for line in text.splitlines() if line.startswith(r"eim\_oe-0 rba"))
    for result in board.results:
        if (result.model, result.scorer) == (MODELS[0], SCORERS[0]):
            best, fpr95 = (f"{100 * result.metrics[key]:.1f}" for key in ("ap", "fpr95"))
            assert re.search(rf"\\textbf{{{best}}} & (\\textbf{{)?{fpr95}}}? &", first)
    row = board.over_seeds[0]
    assert escaped(f"{row.experiment} {row.scorer}, {len(row.seeds)} seeds") in text
    assert rf"{100 * row.mean:.1f} $\pm$ {100 * row.std:.1f}" in text
    table = rich_table(over_seeds(board.over_seeds), "over seeds")
    assert f"{row.mean:.3f} ± {row.std:.3f}" in printed(table)


def printed(table) -> str:
    text = io.StringIO()
    Console(file=text, width=160).print(table)
    return text.getvalue()


def test_the_terminal_shows_what_is_there_and_stars_all_that_read_the_best():
    metrics = {
        "a/one/ap": 0.81234, "a/two/ap": 0.81241, "a/[red]three/ap": 0.811, "a/one/siou": 0.4,
        "a/one/fpr95": 0.1, "a/two/fpr95": 0.3, "a/one/auroc": math.nan, "alone/one/ap": 0.5,
        "[red]model/val/miou": 0.7, "[x]/miou": math.nan,
    }  # fmt: skip
    intervals = {"a/one/ap": (0.756, 0.861), "alone/one/ap": (math.nan, math.nan)}
    text = printed(results_table(metrics, intervals=intervals))
    assert "0.812* [0.756, 0.861]" in text
    # A lower FPR95 is better, and what is alone has nothing to be better than.
    assert re.findall(r"[\d.]+\*", text) == ["0.812*", "0.100*", "0.400*", "0.812*"]
    for expected in (
        *("0.500  [undefined]", "sIoU"),
        "[red]three",  # a name is no markup
        "known classes: [red]model/val/miou 0.700, [x]/miou undefined",
    ):
        assert expected in text
    assert "PPV" not in text
    assert "0.756" not in printed(results_table(metrics))


def test_a_log_has_warnings_above_and_published_numbers_and_files_below(tmp_path, capsys):
    published = [PublishedResult("a", "UNO [x]", {"ap": 0.96}, "a paper", "100 images")]
    metrics = {"a/rba/ap": 0.5, "a/rba/fpr95": 0.2, "a/rba/auroc": math.nan}
    manifest = {"warnings": ["[1] seen in training"], "protocol": {"name": "[x]"}}
    write_metrics(tmp_path / "metrics.json", {"metrics": metrics, "manifest": manifest})
    saved = json.loads((tmp_path / "metrics.json").read_text())  # NaN is null
    figure = tmp_path / "figures" / ("long_" * 30 + ".png")
    write_text(figure, "")
    print_report(saved, tmp_path, published)
    text = capsys.readouterr().out
    order = (
        *("[1] seen in training", "note: protocol [x]", "0.500", "undefined", "published"),
        *("UNO [x]", "0.960", "100 images; a paper"),
        *(str(tmp_path / "metrics.json"), str(figure)),
    )
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "\x1b" not in text


LONG = "smiyc_obstacle21/eim_oe-0.max_logit"


@pytest.mark.parametrize(
    ("width", "method", "count"), [(60, "bench/rba", 3), (80, LONG, 3), (120, LONG, 7)]
)
def test_a_narrow_terminal_shows_numbers_whole_and_says_what_is_missing(
    tmp_path, width, method, count
):
    metrics = {f"{method}/{key}": 0.1 + i / 8 for i, key in enumerate(flagged("main"))}
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    manifest = {"intervals": {f"{method}/ap": [0.04, 0.16]}}
    print_report({"metrics": metrics, "manifest": manifest}, tmp_path, console=console)
    (row,) = (line for line in text.getvalue().splitlines() if method.split("/")[1] in line)
    assert ("[0.040, 0.160]" in row) == (width == 120)  # numbers come before intervals
    numbers = row.replace("[0.040, 0.160]", "").split()[2:]
    assert numbers == [f"{value:.3f}" for value in metrics.values()][:count]
    assert ("more metrics" in text.getvalue()) == (count < 7)


def test_published_numbers_of_the_same_model_come_first_then_the_best():
    erfnet = [entry.method for entry in published_for(["road_anomaly"], {"ERFNet"})]
    assert all(method.startswith("ERFNet ") for method in erfnet[:3])
    others = published_for(["road_anomaly"])
    values = [entry.values["ap"] for entry in others]
    assert values == sorted(values, reverse=True)
    assert not others[0].method.startswith("ERFNet")


OURS = (
    *("road_anomaly", "smiyc_anomaly21", "smiyc_obstacle21"),
    *("fishyscapes_laf", "fishyscapes_static", "lost_and_found"),
)


def test_every_public_benchmark_has_published_numbers_that_say_where_they_are_from():
    published = published_for([*OURS, "synth_anomaly"])
    counts = Counter(entry.benchmark for entry in published)
    assert counts.keys() == set(OURS)
    assert min(counts.values()) > 4
    assert all(entry.source and entry.values for entry in published)
    assert all(0 <= value <= 1 for entry in published for value in entry.values.values())


def test_published_numbers_are_as_printed():
    published = published_for(OURS)
    assert len({(a.benchmark, a.method, a.source) for a in published}) == len(published)
    for benchmark, method, protocol, values in (
        ("smiyc_anomaly21", "UNO, Swin-L, with outliers", "hidden",
         {"ap": 0.9633, "fpr95": 0.0198, "siou": 0.685, "ppv": 0.558, "component_f1": 0.626}),
        ("lost_and_found", "NFlowJS", "without children",
         {"ap": 0.8928, "fpr95": 0.0065, "component_f1": 0.6175}),
        ("road_anomaly", "ERFNet MSP", "512", {"ap": 0.1242, "fpr95": 0.825}),
        ("road_anomaly", "ERFNet MaxLogit", "512", {"ap": 0.1558, "fpr95": 0.732}),
        ("fishyscapes_static", "EoMT ViT-B MSP", "skipped", {"ap": 0.5439, "fpr95": 0.3518}),
        ("fishyscapes_static", "EoMT ViT-B MSP", "kept", {"ap": 0.2993, "fpr95": 0.3418}),
    ):  # fmt: skip
        named = [a for a in published if (a.benchmark, a.method) == (benchmark, method)]
        assert [a.values for a in named if protocol in a.protocol] == [values]


def test_a_metric_that_is_added_in_one_place_is_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        METRICS,
        "found_at_5",
        Metric("found at 5 %", 1, "A new one.", "headline narrow main paper seeds interval image",
               lambda ranking: (ranking.tp / ranking.tp[..., -1:]).mean(-1)),
    )  # fmt: skip
    board = leaderboard_example._leaderboard.__wrapped__()
    value = board.results[0].metrics["found_at_5"]
    low, high = board.results[0].intervals["found_at_5"]
    assert 0 < low <= value <= high < 1
    logged = {}
    tracker = Tracker(tmp_path)
    monkeypatch.setattr(tracker, "log_metrics", lambda metrics, step: logged.update(metrics))
    publish(None, board, [], tracker, tmp_path)
    key = f"{BENCHMARKS[0]}/{MODELS[0]}.{SCORERS[0]}/found_at_5"
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["metrics"][key] == logged[key] == value
    assert saved["manifest"]["intervals"][key] == [low, high]
    assert float(rows_of(board)[0]["found_at_5"]) == value
    for text in (capsys.readouterr().out, as_markdown(board)):
        assert "found at 5 %" in text
        assert f"{value:.3f}" in text
    page = (tmp_path / "report.html").read_text()
    assert page.count("found at 5 % ↑") > 2 * len(BENCHMARKS)
    assert "A new one." in page
    latex = (tmp_path / "leaderboard.tex").read_text()
    assert r"found at 5 \% $\uparrow$" in latex
    assert f"{100 * value:.1f}" in latex
