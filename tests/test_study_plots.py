"""Pictures of a study: whole, legible, and never the reason why a study fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from eomt_exp.studies import drawing
from eomt_exp.studies.plots import draw

pytestmark = pytest.mark.slow  # every test draws with plotly and matplotlib

LR = FloatDistribution(1e-5, 1e-1, log=True)
LOSSES = ("[mask_classification,isotropy_penalty]", "[mask_classification,outlier_margin]")
LOSS = CategoricalDistribution(LOSSES)
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def add(study, values, *, lr=1e-3, loss=0, state=TrialState.COMPLETE, steps=()):
    study.add_trial(
        create_trial(
            state=state,
            values=values,
            params={"optim.lr": lr, "loss": LOSSES[loss]},
            distributions={"optim.lr": LR, "loss": LOSS},
            intermediate_values=dict(enumerate(steps)),
        )
    )


def example(direction="maximize"):
    study = optuna.create_study(study_name="lr <b>", direction=direction)
    for n in range(6):
        value = 0.5 + 0.05 * n
        add(study, [value], lr=10.0 ** (-1 - n / 2), loss=n % 2, steps=[value / 2, value])
    add(study, None, state=TrialState.PRUNED, steps=[0.1])
    add(study, None, state=TrialState.FAIL)
    return study


def figures(page: Path) -> dict[str, dict]:
    """Title -> plotly's figure, as a browser would read them."""
    found = {}
    for section in page.read_text(encoding="utf-8").split("<section>")[1:]:
        title = re.search("<h2>(.*?)</h2>", section)[1]
        source = re.search(r'<script type="application/json">(.*?)</script>', section, re.S)
        found[title] = json.loads(source[1]) if source else None
    return found


def reasons(page: Path) -> dict[str, str]:
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"<h2>([^<]*)</h2><p>Not drawn: ([^<]*)</p>", text))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    import matplotlib

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder, face = tmp_path_factory.mktemp("study"), matplotlib.rcParams["axes.facecolor"]
    study = example()
    paths = draw(study, folder, ["val/ap"])
    assert matplotlib.rcParams["axes.facecolor"] == face
    assert study.trials[0].params == {"optim.lr": 0.1, "loss": LOSSES[0]}
    return folder, paths


def test_a_page_and_pngs_are_written_and_named(drawn):
    folder, paths = drawn
    names = ["study.html", "history.png", "importance.png", "slice.png",
             "parallel_coordinate.png", "intermediate_values.png"]  # fmt: skip
    assert paths == [folder / name for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert all(path.read_bytes()[:4] == PNG for path in paths[1:])


def test_the_page_needs_no_network_and_holds_plotly_once(drawn):
    text = drawn[1][0].read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", text)
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    assert "prefers-color-scheme: dark" in text


def test_names_of_studies_cannot_break_the_page(drawn):
    text = drawn[1][0].read_text(encoding="utf-8")
    assert "<h1>lr &lt;b&gt;</h1>" in text
    assert "<b>" not in text.split("<script>")[0]


def test_the_best_trial_stands_out_in_the_table_and_a_pruned_one_is_in_brackets(drawn):
    text = drawn[1][0].read_text(encoding="utf-8")
    (best,) = re.findall(r'<tr class="best">(.*?)</tr>', text)
    assert best.startswith("<td>5</td><td>complete</td><td>0.75</td>")
    assert "<td>6</td><td>pruned</td><td>(0.1)</td>" in text
    assert "<td>7</td><td>failed</td><td>-</td>" in text


def test_pruning_is_visible(drawn):
    (figure,) = [f for title, f in figures(drawn[1][0]).items() if "while trials ran" in title]
    dashes = {trace["name"]: trace["line"]["dash"] for trace in figure["data"]}
    widths = {trace["name"]: trace["line"]["width"] for trace in figure["data"]}
    assert dashes["Trial6, pruned"] != dashes["Trial4, complete"]
    assert max(widths, key=widths.__getitem__) == "Trial5, best"


def test_labels_are_short_and_different(drawn):
    figure = figures(drawn[1][0])["Trials as lines through their parameters, val/ap"]
    labels = {note["text"] for note in figure["layout"]["annotations"]}
    assert {"[mask_cl…penalty]", "[mask_cl…_margin]"} <= labels
    assert figure["layout"]["xaxis"]["ticktext"] == ["val/ap", "loss", "lr"]


def best_line(page: Path, title: str) -> list[float]:
    (line,) = [t for t in figures(page)[title]["data"] if t["name"] == "Best Value"]
    values = line["y"]
    if isinstance(values, dict):  # plotly packs arrays
        import base64

        import numpy as np

        values = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return values


@pytest.mark.parametrize(("direction", "last"), [("maximize", 0.75), ("minimize", 0.5)])
def test_the_history_knows_which_way_is_better(tmp_path, direction, last, monkeypatch):
    monkeypatch.setattr("eomt_exp.studies.plots.png", lambda *_: None)
    page, *_ = draw(example(direction), tmp_path, ["val/ap"])
    assert best_line(page, "val/ap over the study")[-1] == pytest.approx(last)
    lines = figures(page)["Trials as lines through their parameters, val/ap"]["data"]
    colours = {line["y"][0]: line["line"]["color"] for line in lines if line["mode"] == "lines"}
    orange, grey = "rgb(213,94,0)", "rgb(138,143,152)"
    assert (colours[1], colours[0]) == ((orange, grey) if last == 0.75 else (grey, orange))


def test_a_trial_that_breaks_a_constraint_is_not_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr("eomt_exp.studies.plots.png", lambda *_: None)
    study = optuna.create_study(direction="maximize")
    for value, over in ((0.9, 1.0), (0.5, -1.0), (0.4, -1.0)):
        trial = study.ask({"optim.lr": LR})
        trial.report(value, 0)
        trial.set_constraint("memory", over)
        study.tell(trial, value)
    (page,) = draw(study, tmp_path, ["val/ap"])[:1]
    assert reasons(page) == {}
    names = [line["name"] for line in figures(page)["val/ap while trials ran"]["data"]]
    assert names == ["Trial0, complete", "Trial1, best", "Trial2, complete"]


def test_several_objectives_have_a_front_and_pictures_of_each(tmp_path):
    study = optuna.create_study(directions=["maximize", "minimize"])
    for n in range(4):
        add(study, [n / 10, 5.0 + n], lr=10.0 ** (-1 - n))
    names = {path.name for path in draw(study, tmp_path, ["val/ap", "gflops"])}
    each = ("history", "importance", "slice", "parallel_coordinate")
    wanted = {f"{kind}_{name}.png" for kind in each for name in ("ap", "gflops")}
    assert names == {"study.html", "pareto.png", *wanted}
    assert best_line(tmp_path / "study.html", "gflops over the study")[-1] == 5
    assert "for one objective" in reasons(tmp_path / "study.html")["val/ap while trials ran"]


def test_an_empty_study_is_a_page_that_says_why(tmp_path):
    paths = draw(optuna.create_study(), tmp_path, ["val/ap"])
    assert [path.name for path in paths] == ["study.html"]
    said = reasons(paths[0])
    assert said["val/ap over the study"] == "no trial is complete."
    assert len(said) == len(figures(paths[0]))


def test_equal_values_have_no_importances(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("eomt_exp.studies.plots.png", lambda plot, _: drawn.append(plot.name))
    study = optuna.create_study()
    add(study, [0.5], lr=1e-3)
    add(study, [0.5], lr=1e-4)
    draw(study, tmp_path, ["val/ap"])
    assert drawn == ["history", "slice", "parallel_coordinate"]
    said = reasons(tmp_path / "study.html")["Which parameters matter for val/ap"]
    assert "different values" in said


def test_what_optuna_cannot_draw_is_a_word_on_the_page(tmp_path, caplog):
    plot = drawing.Plot("slice", "val/ap by parameter", "plot_slice", example(), {"params": ["x"]})
    assert drawing.png(plot, tmp_path) is None
    assert "slice.png could not be drawn" in caplog.text
    panel = drawing.panel(plot)
    assert panel.figure is None
    assert "x" in panel.missing
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_no_figure_open_and_optuna_as_loud_as_it_was(drawn):
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
