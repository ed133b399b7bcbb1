"""Pictures of a study: whole, about the right numbers, and never the reason why a study fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from eomt_exp.studies import plots
from eomt_exp.studies.plots import draw

pytestmark = pytest.mark.slow  # every test draws with plotly and matplotlib

LR = FloatDistribution(1e-5, 1e-1, log=True)
LOSS = CategoricalDistribution(("isotropy_penalty", "outlier_margin"))
KINDS = ("history", "importance", "slice", "parallel_coordinate")


def add(study, values, *, lr=1e-3, loss=0, state=TrialState.COMPLETE, steps=()):
    study.add_trial(
        create_trial(
            state=state,
            values=values,
            params={"optim.lr": lr, "loss": LOSS.choices[loss]},
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


def traces(page: Path, title: str) -> list[dict]:
    """Plotly's traces under a title, as a browser would read them."""
    section = page.read_text(encoding="utf-8").split(f"<h2>{title}</h2>")[1]
    source = section.split("Plotly.newPlot(", 1)[1]
    return json.JSONDecoder().raw_decode(source[source.index("[") :])[0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder, study = tmp_path_factory.mktemp("study"), example()
    paths = draw(study, folder, ["val/ap"])
    assert study.trials[0].params["optim.lr"] == 0.1, "the study itself stays as it was"
    return folder, paths


def test_a_page_and_pngs_are_written_and_named(drawn):
    folder, paths = drawn
    names = ["study.html", *(f"{kind}.png" for kind in (*KINDS, "intermediate_values"))]
    assert paths == [folder / name for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths[1:])


def test_the_page_needs_no_network_and_shows_every_trial(drawn):
    text = drawn[1][0].read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", text)
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    assert [text.count(f"<td>{state}</td>") for state in ("COMPLETE", "PRUNED", "FAIL")] == [
        6,
        1,
        1,
    ]
    assert "<h1>lr &lt;b&gt;</h1>" in text, "no name of a study can break the page"


@pytest.mark.parametrize(("direction", "last"), [("maximize", 0.75), ("minimize", 0.5)])
def test_the_history_knows_which_way_is_better(tmp_path, direction, last, monkeypatch):
    monkeypatch.setattr("eomt_exp.studies.plots._png", lambda *_: None)
    (page,) = draw(example(direction), tmp_path, ["val/ap"])
    (line,) = [t for t in traces(page, "val/ap over the study") if t["name"] == "Best Value"]
    assert line["y"][-1] == pytest.approx(last)


def test_several_objectives_have_a_front_and_pictures_of_each(tmp_path):
    study = optuna.create_study(directions=["maximize", "minimize"])
    for n in range(4):
        add(study, [n / 10, 5.0 + n], lr=10.0 ** (-1 - n))
    names = {path.name for path in draw(study, tmp_path, ["val/ap", "gflops"])}
    wanted = {f"{kind}_{name}.png" for kind in KINDS for name in ("ap", "gflops")}
    assert names == {"study.html", "pareto.png", *wanted}


def test_what_cannot_be_drawn_is_said_and_costs_nothing_else(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise MemoryError("no memory <left>")

    monkeypatch.setattr(plots.visualization, "plot_slice", broken)
    monkeypatch.setattr(plots.drawn, "plot_slice", broken)
    paths = draw(example(), tmp_path, ["val/ap"])
    assert "slice.png" not in {path.name for path in paths}
    assert len(paths) == 5
    assert "Not drawn: MemoryError: no memory &lt;left&gt;" in paths[0].read_text(encoding="utf-8")
    assert draw(optuna.create_study(), tmp_path / "empty", ["val/ap"])[0].is_file()
