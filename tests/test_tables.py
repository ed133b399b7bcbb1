"""Tables of a leaderboard say what was measured, in every form people take away."""

from __future__ import annotations

import copy
import csv
import io
import math
import re

import pytest
from leaderboard_example import BENCHMARKS, MODELS, NOTE, SCORERS, STAMP, leaderboard
from rich.console import Console

from eomt_exp.report.html.tables import number
from eomt_exp.report.latex import escaped
from eomt_exp.report.leaderboard import Anchor, Leaderboard
from eomt_exp.report.metric_names import SEMANTIC
from eomt_exp.report.published import anchors_for
from eomt_exp.report.terminal import (
    NUM_ANCHORS,
    anchors_table,
    print_report,
    results_table,
    seeds_table,
)
from eomt_exp.report.text_tables import as_csv, as_latex, as_markdown


@pytest.fixture(scope="module")
def measured() -> Leaderboard:
    return leaderboard(num_images=4, height=64)


@pytest.fixture
def board(measured: Leaderboard) -> Leaderboard:
    """A copy that a test may change."""
    board = copy.deepcopy(measured)
    board.title = "A & B"
    return board


def test_csv_reads_back_to_the_very_numbers(board):
    rows = list(csv.DictReader(io.StringIO(as_csv(board))))
    assert len(rows) == len(MODELS) * (len(SCORERS) * len(BENCHMARKS) + 1)
    for row, result in zip(rows, board.results, strict=False):
        assert (row["benchmark"], row["model"]) == (result.benchmark, result.model)
        assert row["scorer"] == result.scorer
        for key, value in result.metrics.items():
            read = float(row[key])
            assert read == value or (math.isnan(read) and math.isnan(value))
        for key, (low, high) in result.intervals.items():
            assert (float(row[f"{key}_low"]), float(row[f"{key}_high"])) == (low, high)
        assert row["stamps"] == STAMP


def test_csv_has_a_row_of_known_classes_for_every_model(board):
    rows = list(csv.DictReader(io.StringIO(as_csv(board))))[-len(MODELS) :]
    for row, (model, known) in zip(rows, board.known_classes.items(), strict=True):
        named = (row["benchmark"], row["protocol"], row["model"], row["scorer"], row["stamps"])
        assert named == ("data.val", "default", model, "", STAMP)
        assert [float(row[key]) for key in SEMANTIC] == [known[key] for key in SEMANTIC]
        assert row["ap"] == "" != row["category_miou"]
        assert not any("iou_" in key for key in row)  # single classes are in metrics.json


def test_csv_keeps_unmeasured_and_undefined_apart(board):
    del board.results[0].metrics["siou"]
    rows = list(csv.DictReader(io.StringIO(as_csv(board))))
    assert rows[0]["siou"] == ""
    assert rows[len(board.results) - 1]["ppv"] == "nan"


def test_csv_survives_names_with_commas_and_quotes(board):
    board.results = [_renamed(board, 'a,"b"\n')]
    row, *_ = csv.DictReader(io.StringIO(as_csv(board)))
    assert row["model"] == 'a,"b"\n'


def _renamed(board: Leaderboard, model: str):
    first = board.results[0]
    return type(first)(**{**vars(first), "model": model})


def test_markdown_warns_before_it_shows_a_number(board):
    text = as_markdown(board)
    assert text.index(STAMP.replace("_", r"\_")) < text.index("| method |")
    result = board.results[0]
    low, high = result.intervals["ap"]
    assert f"**{result.metrics['ap']:.3f}** [{low:.3f}, {high:.3f}]" in text
    assert "undefined" in text
    assert "nan" not in text
    assert "0.612 ± 0.013" in text
    assert f"{board.known_classes[MODELS[0]]['miou']:.3f}" in text
    assert "README of RbA" in text
    first, second = board.known_classes.values()
    assert "| category mIoU |" in text
    assert f"| {first['aacc']:.3f} | {first['category_miou']:.3f} |" in text
    for key, name in (("iou_traffic_sign", "traffic sign"), ("category_iou_flat", "flat")):
        assert f"| {name} | {first[key]:.3f} | {second[key]:.3f} |" in text
    assert "Protocol: default." in text
    assert f"Note: {NOTE}" in text


@pytest.mark.parametrize("ends", [(0.0016, 0.0009, 0.0024), (0.9981, 0.9962, 0.9989)])
def test_an_interval_never_leaves_out_its_own_value(board, ends):
    value, low, high = ends
    metrics = {"a/rba/ap": value}
    board.results[0].metrics["ap"], board.results[0].intervals["ap"] = value, (low, high)
    terminal = printed(results_table(metrics, intervals={"a/rba/ap": (low, high)}))
    cell = str(number("ap", value, (low, high)).content)
    for text in (terminal, as_markdown(board), cell):
        read = re.search(r"(0\.\d+)\W.*?\[(0\.\d+), (0\.\d+)\]", text)
        shown, least, most = map(float, read.groups())
        assert least < shown < most


def test_every_row_of_a_markdown_table_has_its_columns(board):
    board.results = [_renamed(board, "a|b*c"), *board.results]
    width = 0
    for line in as_markdown(board).splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert cells == (width or cells)
        width = cells


def test_latex_is_balanced_escaped_and_bold_where_best(board):
    board.results = [*board.results, _renamed(board, r"50% of_a$b#c & {d}\e~^")]
    text = as_latex(board)
    depth = 0
    for mark in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        assert depth >= 0
    assert depth == 0
    assert r"\caption{A \& B (protocol: default)$^{\dagger}$}" in text
    name = r"50\% of\_a\$b\#c \& \{d\}\textbackslash{}e\textasciitilde{}\textasciicircum{}"
    assert name in text
    assert rf"\textbf{{{100 * board.results[0].metrics['ap']:.1f}}}" in text
    assert r"synth\_anomaly" in text
    assert text.index(r"\end{tabular}") < text.index(r"were seen in training")
    assert rf"\footnotesize {NOTE}" in text  # no dagger: it does not discredit the numbers
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    columns = text.split(r"\begin{tabular}{l")[1].split("}")[0]
    assert len(columns) == 5 * len(BENCHMARKS)  # AP, FPR95 and the three of components
    for row in body.splitlines()[1:]:
        if row == r"\midrule":  # below it, means over seeds
            continue
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns)
    first = body.splitlines()[1].replace(r"\textbf{", "").replace("}", "")
    for result in board.results:
        if (result.model, result.scorer) == (MODELS[0], SCORERS[0]):
            assert f"& {100 * result.metrics['fpr95']:.1f} &" in first
    assert [name for name in re.findall(r"\\begin\{(\w+)\}", text)] == ["table", "tabular"]


def test_seeds_are_gathered_in_latex_and_on_the_terminal(board):
    row = board.over_seeds[0]
    text = as_latex(board)
    assert escaped(f"{row.experiment} {row.scorer}, {len(row.seeds)} seeds") in text
    assert rf"{100 * row.mean:.1f} $\pm$ {100 * row.std:.1f}" in text
    assert f"{row.mean:.3f} ± {row.std:.3f}" in printed(seeds_table(board.over_seeds))


def test_a_letter_that_latex_has_not_got_does_not_break_it(board):
    board.title = "τ = 1 — é 漢"
    assert r"\caption{$\tau$ = 1 --- é ?" in as_latex(board)


@pytest.mark.parametrize("write", [as_csv, as_markdown, as_latex])
def test_tables_of_nothing_and_of_one_method(board, write):
    assert write(Leaderboard("empty", [], {}, {}))
    alone = Leaderboard("alone", board.results[:1], {}, {})
    assert "rba" in write(alone)
    if write is as_latex:
        assert r"\textbf" not in write(alone)  # nothing to be better than


def printed(table) -> str:
    text = io.StringIO()
    Console(file=text, width=160).print(table)
    return text.getvalue()


def test_the_terminal_shows_intervals_and_components_where_they_are():
    metrics = {"a/rba/ap": 0.81234, "a/rba/siou": 0.4, "a/[red]msp/component_f1": 0.3}
    text = printed(results_table(metrics, intervals={"a/rba/ap": (0.756, 0.861)}))
    assert "0.812* [0.756, 0.861]" in text
    assert "sIoU" in text
    assert " F1 " in text
    assert "PPV" not in text
    assert "[red]msp" in text  # a name is no markup
    assert "0.76" not in printed(results_table(metrics))


def test_the_terminal_stars_all_that_read_the_same():
    metrics = {"a/one/ap": 0.81234, "a/two/ap": 0.81241, "a/three/ap": 0.811}
    text = printed(results_table(metrics))
    assert text.count("0.812*") == 2
    assert "0.811*" not in text


def test_the_line_of_known_classes_takes_no_name_for_markup():
    metrics = {"a/rba/ap": 0.8, "[red]model/val/miou": 0.7, "[x]/miou": math.nan}
    text = printed(results_table(metrics, intervals={"a/rba/ap": (math.nan, math.nan)}))
    assert "semantic: [red]model/val/miou 0.700, [x]/miou undefined" in text
    assert "0.800  [undefined]" in text


def test_the_terminal_puts_stamps_above_and_published_numbers_below(tmp_path, capsys):
    anchors = [Anchor("a", "UNO [x]", {"ap": 0.96}, "a paper", "100 images")]
    metrics = {"a/rba/ap": 0.5, "a/rba/fpr95": 0.2}
    stamps, notes = ["[1] seen in training"], ["protocol [x]"]
    print_report(metrics, tmp_path, stamps=stamps, notes=notes, anchors=anchors)
    text = capsys.readouterr().out
    order = [
        "[1] seen in training",
        "note: protocol [x]",
        "0.500",
        "published",
        "UNO [x]",
        "0.960",
        "100 images; a paper",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_stamps_are_red_on_a_terminal(tmp_path):
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True, color_system="standard")
    print_report({"a/rba/ap": 0.5}, tmp_path, console=console, stamps=["seen"])
    assert re.search(r"\x1b\[1;31m! seen", text.getvalue())


def test_a_narrow_terminal_keeps_the_numbers_and_drops_the_intervals(tmp_path):
    text = io.StringIO()
    console = Console(file=text, width=60, force_terminal=True, color_system=None)
    metrics = {"bench/scorer/ap": 0.5, "bench/scorer/fpr95": 0.25, "bench/scorer/auroc": 0.75}
    print_report(metrics, tmp_path, console=console, intervals={"bench/scorer/ap": (0.4, 0.6)})
    assert all(number in text.getvalue() for number in ("0.500", "0.250", "0.750"))
    assert "0.40" not in text.getvalue()


def test_eighty_columns_show_the_main_metrics_whole_and_say_what_is_missing(tmp_path):
    keys = ("ap", "fpr95", "auroc", "f1_star", "siou", "ppv", "component_f1")
    metrics = {f"smiyc_obstacle21/eim_oe-0.max_logit/{k}": 0.1 + i / 8 for i, k in enumerate(keys)}
    for width, count in ((80, 3), (120, 7)):
        text = io.StringIO()
        console = Console(file=text, width=width, force_terminal=True, color_system=None)
        print_report(metrics, tmp_path, console=console)
        (row,) = (line for line in text.getvalue().splitlines() if "eim_oe-0.max_logit" in line)
        assert row.split()[2:] == [f"{value:.3f}" for value in metrics.values()][:count]
        assert ("more metrics" in text.getvalue()) == (count < 7)


def test_the_anchors_left_out_of_the_terminal_are_counted():
    anchors = [Anchor("a", f"method {i}", {"ap": i / 100}, "", "") for i in range(NUM_ANCHORS + 3)]
    text = printed(anchors_table(anchors))
    assert "method 0" in text  # in the order they come: those of our own kind first
    assert "method 7" not in text
    assert "3 more" in text


def test_published_numbers_of_the_same_model_come_first_then_the_best():
    erfnet = [anchor.method for anchor in anchors_for(["road_anomaly"], {"ERFNet"})]
    assert all(method.startswith("ERFNet ") for method in erfnet[:3])
    others = anchors_for(["road_anomaly"])
    values = [anchor.values["ap"] for anchor in others]
    assert values == sorted(values, reverse=True)
    assert not others[0].method.startswith("ERFNet")


OURS = (
    *("road_anomaly", "smiyc_anomaly21", "smiyc_obstacle21"),
    *("fishyscapes_laf", "fishyscapes_static", "lost_and_found"),
)


def test_every_public_benchmark_has_anchors_that_say_where_they_are_from():
    for name in OURS:
        anchors = anchors_for([name])
        assert len(anchors) > 4
        for anchor in anchors:
            assert anchor.benchmark == name
            assert anchor.source
            assert anchor.values
            assert all(0 <= value <= 1 for value in anchor.values.values())
    assert anchors_for(["synth_anomaly"]) == []
    assert {a.benchmark for a in anchors_for(OURS[:2])} == set(OURS[:2])


def test_anchors_are_the_published_numbers():
    found = {(a.benchmark, a.method, a.source): a for a in anchors_for(OURS)}
    assert len(found) == len(anchors_for(OURS))
    lb = "SegmentMeIfYouCan leaderboard, 2026-04-08"
    uno = found["smiyc_anomaly21", "UNO, Swin-L, with outliers", lb]
    assert uno.values == {
        "ap": 0.9633, "fpr95": 0.0198, "siou": 0.685, "ppv": 0.558, "component_f1": 0.626
    }  # fmt: skip
    assert "hidden" in uno.protocol
    ooddino = found["smiyc_obstacle21", "OodDINO + RPL, with a detector", lb]
    assert ooddino.values == {"ap": 0.9405, "fpr95": 0.0006, "component_f1": 0.865}
    laf = {a.method: a for a in anchors_for(["lost_and_found"])}
    assert laf["NFlowJS"].values == {"ap": 0.8928, "fpr95": 0.0065, "component_f1": 0.6175}
    assert "without children" in laf["RAOS"].protocol
    pebal = found["fishyscapes_laf", "PEBAL, with outliers", "log in an issue on PEBAL"]
    assert pebal.values == {"ap": 0.5881, "fpr95": 0.0476}
    erfnet = {a.method: a for a in anchors_for(["road_anomaly"]) if a.method.startswith("ERFNet")}
    assert erfnet["ERFNet MSP"].values == {"ap": 0.1242, "fpr95": 0.825}
    assert erfnet["ERFNet MaxLogit"].values["ap"] == 0.1558
    assert "512" in erfnet["ERFNet entropy"].protocol
    static = [a for a in anchors_for(["fishyscapes_static"]) if a.method == "EoMT ViT-B MSP"]
    skipped, kept = (
        [a.values["ap"] for a in static if word in a.protocol] for word in ("skipped", "kept")
    )
    assert (skipped, kept) == ([0.5439], [0.2993])
