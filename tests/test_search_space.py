"""The search space of a study: what is read, asked for, written out again, and refused."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from eomt_exp.contracts import UserError
from eomt_exp.studies.rules import parse_constraint, parse_rule, text_of
from eomt_exp.studies.space import SearchSpace, read_space

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Mode(Enum):
    """As of a declared key."""

    no = "no"
    bf16 = "bf16"


CONFIG: dict[str, Any] = {
    "optim.name": "adam",
    "optim.lr": 0.001,
    "optim.momentum": None,
    "optim.steps": 10,
    "optim.mode": Mode.no,
    "flag": True,
    "head": "mlp",
    "head.queries": 24,
    "head.rate": 0.001,
    "loss": ["mask", "margin"],
    "pair.low": 0.1,
    "pair.high": 0.9,
    "seed": 0,
}
lookup = CONFIG.get


def read(params: dict[str, Any], *overrides: str, forbid: Any = ()) -> SearchSpace:
    return read_space(params, overrides, forbid, lookup)[0]


def values_of(text: str) -> list[Any]:
    return read({"x": text}).parameters["x"].values()


def parsed(override: str) -> Any:
    return OverridesParser.create().parse_overrides([override])[0].value()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("choice(b, a)", ["a", "b"]),
        ("3,1,2", [1, 2, 3]),
        ("null,true,false", [None, False, True]),
        ("choice('1', 1)", [1, "1"]),
        ("choice(true, 'true')", [True, "true"]),
        ("range(4,13,4)", [4, 8, 12]),
        ("range(10,1,-3)", [4, 7, 10]),
        ("range(0.1,0.6,0.1)", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("range(0.1,0.8,0.1)", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("float(range(1,4))", [1.0, 2.0, 3.0]),
        ("int(interval(4,7))", [4, 5, 6, 7]),
        ("int(tag(log, interval(1,3)))", [1, 2, 3]),
        ("interval(0, 1)", []),
    ],
)
def test_a_finite_space_lists_its_values_with_their_types(text: str, values: list[Any]) -> None:
    found = values_of(text)
    assert found == values
    assert [type(one) for one in found] == [type(one) for one in values]


def test_the_command_line_wins_over_yaml_and_keeps_the_condition_and_the_prefix() -> None:
    params = {
        "seed": "range(3)",
        "optim.lr": "interval(0.1, 0.5)",
        "optim.momentum": {"space": "interval(0.5, 0.9)", "when": {"optim.name": "sgd"}},
        "gone": "choice(1, 2)",
    }
    typed = ["optim.momentum=interval(0.1,0.2)", "optim.lr=0.3", "~gone", "+experiment=eim,oe"]
    space, rest = read_space(params, typed, [], lookup)
    assert rest == ["optim.lr=0.3", "~gone"]
    assert space.fingerprint() == {
        "experiment": "choice(eim, oe)",
        "seed": "int(interval(0, 2))",
        "optim.momentum": "interval(0.1, 0.2) when optim.name == sgd",
    }
    assert space.overrides({"experiment": "eim", "seed": 1}) == ["+experiment=eim", "seed=1"]


def test_of_two_overrides_of_a_key_the_later_one_counts() -> None:
    space, rest = read_space({}, ["seed=1,2", "seed=3"], [], lookup)
    assert (list(space.parameters), rest) == ([], ["seed=3"])
    space, rest = read_space({}, ["seed=3", "++seed=1,2"], [], lookup)
    assert (space.overrides({"seed": 2}), rest) == (["++seed=2"], [])
    # As one replaces a key in Hydra.
    space, rest = read_space({}, ["~seed", "+seed=1,2"], [], lookup)
    assert (space.overrides({"seed": 2}), rest) == (["+seed=2"], ["~seed"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("choice(b, a)", "a,b"),
        ("range(4, 8)", "int(interval(4, 7))"),
        ("range(4, 14, 4)", "range(12, 3, -4)"),
        ("tag(log, interval(1e-5, 1e-1))", "tag(log,interval(0.00001,0.1))"),
        ("int(tag(log, interval(4,64)))", "tag(log, int(interval(4,64)))"),
        ("range(0.1, 0.6, 0.1)", "range(0.5, 0.0, -0.1)"),
    ],
)
def test_equal_spaces_have_one_fingerprint_which_reads_back(one: str, other: str) -> None:
    text = read({"x": one}).fingerprint()["x"]
    assert text == read({"x": other}).fingerprint()["x"] == read({"x": text}).fingerprint()["x"]
    distributions = [read({"x": each}).parameters["x"].distribution for each in (one, other)]
    assert distributions[0] == distributions[1]


def test_other_spaces_and_other_conditions_have_other_fingerprints() -> None:
    texts = ["interval(1,2)", "int(interval(1,2))", "tag(log,interval(1,2))", "1,2", "'1',2"]
    found = {read({"x": text}).fingerprint()["x"] for text in texts}
    when = [{"a": 1}, {"a": "1"}, {"a": ">= 1"}, {"a": [1, 2]}]
    found |= {read({"x": {"space": "1,2", "when": w}}).fingerprint()["x"] for w in when}
    assert len(found) == len(texts) + len(when)


AWKWARD = [
    *("a b", "a,b", "it's", 'say "x"', "1", "1e-5", "null", "true", "nan", "inf", "", "a=b", "é"),
    *("[a]", "{a:1}", "\\", "a\\'b", "\\'", "end\\", " lead", "tab\tb", "${x}", "a:b", "#", "-1"),
    *("two\nlines", "'quoted'", "choice(1,2)", "x/y.z-1", "NULL", "$", "a$b", "@", "1_0", "~", "*"),
    *(1, 1.0, 1e-5, 1e16, 0.1 + 0.2, -3, 5e-324, None, True),
]


@pytest.mark.parametrize("value", AWKWARD)
def test_an_override_that_hydra_reads_gives_the_same_value(value: Any) -> None:
    back = parsed(f"x={text_of(value)}")
    assert back == value
    assert type(back) is type(value)


def test_values_come_back_equal_from_a_journal_and_from_hydra(tmp_path: Path) -> None:
    params = {
        "a": ",".join(text_of(one) for one in AWKWARD[:20]),
        "b": "null,true,1.5,2,'2'",
        "c": "tag(log, interval(1e-5, 1e-1))",
        "d": "range(0.1, 0.8, 0.1)",
        "e": "int(tag(log, interval(1, 64)))",
    }
    space = read(params)

    def study(seed: int = 0) -> optuna.Study:
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        sampler = optuna.samplers.RandomSampler(seed)
        return optuna.create_study(
            storage=storage, study_name="s", load_if_exists=True, sampler=sampler
        )

    asked = []
    for seed in range(40):
        trial = study(seed).ask()
        asked.append(space.suggest(trial))
        study().tell(trial, 0.0)
    for values, trial in zip(asked, study().trials, strict=True):
        assert space.overrides(values) == space.overrides(trial.params)
        assert {
            name: parsed(override)
            for name, override in zip(values, space.overrides(values), strict=True)
        } == values
    assert {values["d"] for values in asked} == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}


def test_a_study_goes_on_when_its_choice_is_written_in_another_order() -> None:
    study = optuna.create_study()
    for text in ("choice(b, a, 1)", "1,a,b"):
        trial = study.ask()
        read({"x": text}).suggest(trial)
        study.tell(trial, 0.0)
    assert len(study.trials) == 2


def test_a_condition_looks_at_chosen_values_and_at_the_configuration() -> None:
    params = {  # what a condition asks for may be written after it
        "optim.nesterov": {"space": "true,false", "when": {"optim.momentum": "> 0.7"}},
        "optim.momentum": {"space": "interval(0.5, 0.9)", "when": {"optim.name": "sgd"}},
        "optim.steps": {"space": "range(1, 5)", "when": {"head": "mlp", "optim.mode": "no"}},
        "optim.lr": {"space": "interval(0, 1)", "when": {"head": "linear"}},
    }
    space = read(params, "optim.name=choice(adam,sgd)")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(30):
        values = space.suggest(study.ask())
        is_sgd = values["optim.name"] == "sgd"
        assert ("optim.momentum" in values) == is_sgd
        assert ("optim.nesterov" in values) == (is_sgd and values["optim.momentum"] > 0.7)
        assert "optim.steps" in values
        assert "optim.lr" not in values
        seen.add(frozenset(values))
    assert len(seen) == 3


def test_conditions_that_wait_for_one_another_are_refused() -> None:
    a = {"space": "1,2", "when": {"b": 1}}
    b = {"space": "1,2", "when": {"a": 1}}
    with pytest.raises(UserError, match="wait for one another"):
        read({"a": a, "b": b})


def test_forbidden_combinations_are_named() -> None:
    space = read(
        {"pair.low": "interval(0, 1)", "optim.name": "adam,sgd", "optim.lr": "interval(0, 1)"},
        forbid=[
            {"pair.low": ">= pair.high"},
            {"optim.name": "sgd", "optim.lr": "> 0.5", "head": ["mlp", "none"]},
        ],
    )
    assert space.forbidden({"pair.low": 0.95}) == "pair.low >= pair.high"
    assert space.forbidden({"pair.low": 0.5}) is None
    broken = space.forbidden({"optim.name": "sgd", "optim.lr": 0.6})
    assert broken == "head in [mlp, none] and optim.lr > 0.5 and optim.name == sgd"
    assert space.forbidden({"optim.name": "adam", "optim.lr": 0.6}) is None


def test_the_defaults_are_the_configurations_own_values() -> None:
    space = read(
        {
            "optim.lr": "tag(log, interval(1e-5, 1e-1))",
            "head.rate": "range(0.001, 0.005, 0.001)",
            "optim.mode": "choice(no, bf16)",
            "optim.momentum": "null,0.9",
            "head": "choice(mlp, linear)",
            "optim.steps": {"space": "range(1, 3)", "when": {"head": "linear"}},
        }
    )
    found, outside = space.defaults()
    assert outside == []
    assert found == {
        "optim.lr": 0.001,
        "head.rate": 0.001,
        "optim.mode": "no",
        "optim.momentum": None,
        "head": "mlp",
    }
    study = optuna.create_study()
    study.enqueue_trial(found)
    assert space.suggest(study.ask()) == found


def test_a_default_that_lies_outside_is_named() -> None:
    outside = {"optim.lr": "interval(0.5, 1)", "optim.steps": "range(1, 20, 2)", "+new": "1,2"}
    space = read({**outside, "optim.name": "choice(sgd, lion)", "head": "choice(mlp, none)"})
    assert space.defaults()[1] == ["optim.lr", "optim.steps", "new", "optim.name"]


def test_probes_show_every_choice_and_both_ends_and_keep_conditions() -> None:
    space = read(
        {
            "optim.lr": "interval(0.1, 0.5)",
            "head": "choice(linear, mlp, none)",
            "head.depth": {"space": "range(1, 5)", "when": {"head": "mlp"}},
        }
    )
    assert space.probes() == [
        {"optim.lr": 0.1, "head": "linear"},
        {"optim.lr": 0.5, "head": "mlp", "head.depth": 4},
        {"optim.lr": 0.5, "head": "none"},
    ]


def test_a_grid_has_every_point_once_in_an_order_of_its_own() -> None:
    space = read({"x": "range(0.1, 0.4, 0.1)", "y": "null,a,1", "z": "1,2"})
    points = space.grid(seed=1)
    assert len({tuple(point.values()) for point in points}) == 18 == len(points)
    assert points == space.grid(seed=1) != space.grid(seed=2)


@pytest.mark.parametrize(
    "node", ["interval(1, 2)", {"space": "1,2", "when": {"a": 1}}, "range(20000)"]
)
def test_a_grid_refuses_what_has_no_finite_list(node: Any) -> None:
    with pytest.raises(UserError, match="a grid needs a finite list"):
        read({"a": "1,2", "b": node}).grid(0)


@pytest.mark.parametrize(
    "node",
    [
        *("choice(null, a)", "interval(4,", "uniform(1, 2)", "interval(5, 1)", "interval(0, inf)"),
        *("choice(a, b, a)", "choice(1, 1.0)", "1,true", "choice(nan, 1)", "choice([a],[b])"),
        *("range(4, 4)", "range(4, 1)", "range(1, 4, 0)", "tag(log, interval(0, 1))", "3", 3, None),
        *("tag(lgo, interval(1, 2))", "tag(log, choice(1, 2))", "tag(log, range(0.1, 1, 0.1))"),
        *("tag(log, range(1, 9, 2))", "glob(*)", {"space": "1,2", "whem": {}}, {"low": 1}, [1, 2]),
    ],
)
def test_a_space_that_cannot_be_shows_those_that_can(node: Any) -> None:
    with pytest.raises(UserError, match=r"x.*choice"):
        read({"x": node})
    with pytest.raises(UserError, match="a setting of Hydra cannot be searched"):
        read({}, "hydra.job.name=a,b")


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({"optim.name": "adam"}, True),
        ({"optim.name": ["adam", "sgd"]}, True),
        ({"optim.name": ["sgd"]}, False),
        ({"optim.steps": 10.0}, True),
        ({"optim.steps": "10"}, False),
        ({"flag": 1}, False),
        ({"flag": True}, True),
        ({"optim.steps": True}, False),
        ({"optim.momentum": None}, True),
        ({"optim.momentum": "< 3"}, False),
        ({"optim.steps": "< 10"}, False),
        ({"optim.steps": "<= 10"}, True),
        ({"optim.steps": ">-1e3"}, True),
        ({"flag": "> 0"}, False),
        ({"optim.mode": "no"}, True),
        ({"optim.mode": ["bf16"]}, False),
        ({"loss": "margin"}, True),
        ({"pair.low": "< pair.high"}, True),
        ({"optim.steps": "< absent"}, False),
        ({"optim.name": "adam", "optim.steps": "> 10"}, False),
        ({"optim.name": "adam", "optim.steps": ">= 10"}, True),
    ],
)
def test_rules_compare_as_they_read(rule: dict[str, Any], holds: bool) -> None:
    assert parse_rule(rule, "here").holds(lookup) is holds


def test_rules_that_say_the_same_have_one_text() -> None:
    one = parse_rule({"b": [2, 1, 2], "a": "x"}, "here")
    assert one.text == "a == x and b in [1, 2]" == parse_rule({"a": ["x"], "b": [1, 2]}, "").text
    assert parse_rule({"a": ">= b.c", "d": 1}, "here").keys == {"a", "d", "b.c"}


@pytest.mark.parametrize(
    "rule",
    [
        *({}, "a == 1", {"a": "= 3"}, {"a": "=> 3"}, {"a": "> "}, {"a": "== 3"}, {"a": "> nan"}),
        *({"a": "> true"}, {"a": "> two words"}, {"a": "> 1abc"}, {"a": []}, {"a": {"b": 1}}),
    ],
)
def test_rules_that_cannot_be_read_say_where_and_how(rule: Any) -> None:
    with pytest.raises(UserError, match=r"^forbid\[2\].*write"):
        parse_rule(rule, "forbid[2]")


@pytest.mark.parametrize(
    ("bound", "value", "violation"),
    [
        (">= 0.5", 0.25, 0.25),
        (">= 0.5", 0.5, 0.0),
        (">= 0.5", 0.75, -0.25),
        ("<= 2", 5.0, 3.0),
        ("<=-1", -2.0, -1.0),
        (">= 0.5", math.nan, math.inf),
        ("<= 2", math.inf, math.inf),
    ],
)
def test_a_constraint_is_violated_by_what_is_beyond_its_bound(
    bound: str, value: float, violation: float
) -> None:
    assert parse_constraint("val/miou", bound).violation(value) == violation


def test_a_strict_bound_is_not_kept_by_the_bound_itself() -> None:
    assert parse_constraint("m", "> 0.5").violation(0.5) > 0
    assert parse_constraint("m", "< 0.5").violation(0.5) > 0


@pytest.mark.parametrize("bound", [0.5, "0.5", "== 0.5", ">= val/ap", ">= nan", ">=", None])
def test_a_bound_that_is_none_shows_the_line_to_type(bound: Any) -> None:
    with pytest.raises(UserError, match=r">= 0\.5"):
        parse_constraint("val/miou", bound)
