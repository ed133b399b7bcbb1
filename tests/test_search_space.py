"""The search space of a study: what is read, asked, written out again, and refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from eomt_exp.cli import register
from eomt_exp.paths import asset_dir
from eomt_exp.studies.rules import parse_constraints, parse_rule
from eomt_exp.studies.space import SearchSpace, SpaceError, read_space
from eomt_exp.studies.space_domains import text_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

GROUPS = {
    "head": ["linear", "mlp", "none"],
    "experiment": ["baseline", "eim"],
    "loss": ["margin", "mask", "penalty"],
}


class Mode(Enum):
    """Of the toy configuration below."""

    no = "no"
    bf16 = "bf16"


@dataclass
class Optim:
    """Declared types, as in eomt_exp.schema."""

    name: str = "adam"
    lr: float = 0.001
    momentum: float | None = None
    steps: int = 10
    mode: Mode = Mode.no
    nesterov: bool = False
    size: list[int] = field(default_factory=lambda: [8, 8])


@pytest.fixture
def cfg() -> DictConfig:
    free = {
        "head": {"queries": 24, "rate": "${optim.lr}", "word": "auto", "unset": "???"},
        "loss": {"mask": {"weight": 1.0}, "margin": {"weight": 2.0}},
        "pair": {"low": 0.1, "high": 0.9},
        "hydra": {"runtime": {"choices": {"head": "mlp"}}},
    }
    return OmegaConf.merge({"optim": OmegaConf.structured(Optim), "seed": 0}, free)  # type: ignore[return-value]


def read(params: Mapping[str, Any], *words: str, forbid: Any = ()) -> SearchSpace:
    return read_space(params, words, forbid)[0]


def checked(cfg: DictConfig, params: Mapping[str, Any], *words: str, forbid: Any = ()) -> Any:
    space = read(params, *words, forbid=forbid)
    space.check(cfg, GROUPS.get)
    return space


def parsed(word: str) -> Any:
    return OverridesParser.create().parse_overrides([word])[0].value()


def from_config(cfg: DictConfig) -> Any:
    def lookup(key: str) -> Any:
        choices = cfg.hydra.runtime.choices
        return choices[key] if key in choices else OmegaConf.select(cfg, key)

    return lookup


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("choice(b, a)", ["a", "b"]),
        ("3,1,2", [1, 2, 3]),
        ("null,true,false", [None, False, True]),
        ("choice('1', 1)", [1, "1"]),
        ("choice(true, 'true')", [True, "true"]),
        ("choice([a,'1'],[c])", ["[a,'1']", "[c]"]),
        ("range(4,13,4)", [4, 8, 12]),
        ("range(10,1,-3)", [4, 7, 10]),
        ("range(0.1,0.6,0.1)", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("range(0.1,0.8,0.1)", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("range(1,3,0.5)", [1.0, 1.5, 2.0, 2.5]),
        ("float(range(1,4))", [1.0, 2.0, 3.0]),
        ("int(interval(4,7))", [4, 5, 6, 7]),
        ("int(tag(log, interval(1,3)))", [1, 2, 3]),
        ([0.5, "a b", None], [None, 0.5, "a b"]),
        ({"low": 4, "high": 13, "step": 4, "int": True}, [4, 8, 12]),
        ({"low": 0, "high": 1, "step": 0.25}, [0.0, 0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_a_finite_space_lists_its_values_with_their_types(text: Any, values: list[Any]) -> None:
    found = read({"x": text}).grid()["x"]
    assert found == values
    assert [type(one) for one in found] == [type(one) for one in values]


def test_the_command_line_wins_over_yaml_and_keeps_the_condition_and_the_prefix() -> None:
    params = {
        "seed": "range(3)",
        "optim.lr": "interval(0.1, 0.5)",
        "optim.momentum": {"space": "interval(0.5, 0.9)", "when": {"optim.name": "sgd"}},
        "gone": "choice(1, 2)",
    }
    space, rest = read_space(
        params,
        ["optim.momentum=interval(0.1,0.2)", "optim.lr=0.3", "~gone", "+experiment=eim,baseline"],
    )
    assert rest == ["optim.lr=0.3", "~gone"]
    assert space.fingerprint() == {
        "experiment": "choice(baseline, eim)",
        "seed": "int(interval(0, 2))",
        "optim.momentum": "interval(0.1, 0.2) when optim.name == sgd",
    }
    assert space.words({"experiment": "eim", "seed": 1}) == ["+experiment=eim", "seed=1"]


def test_of_two_words_for_a_key_the_later_one_counts() -> None:
    space, rest = read_space({}, ["seed=1,2", "seed=3"])
    assert (len(space), rest) == (0, ["seed=3"])
    space, rest = read_space({}, ["seed=3", "++seed=1,2"])
    assert (space.words({"seed": 2}), rest) == (["++seed=2"], [])
    space, rest = read_space({}, ["~seed", "+seed=1,2"])  # as one replaces a key in Hydra
    assert (space.words({"seed": 2}), rest) == (["+seed=2"], ["~seed"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("choice(b, a)", "a,b"),
        ("range(4, 8)", "int(interval(4, 7))"),
        ("range(4, 14, 4)", "range(12, 3, -4)"),
        ("tag(log, interval(1e-5, 1e-1))", "tag(log,interval(0.00001,0.1))"),
        ("int(tag(log, interval(4,64)))", "tag(log, int(interval(4,64)))"),
        ("interval(1, 2)", {"low": 1, "high": 2}),
        ("range(0, 1.1, 0.5)", {"low": 0, "high": 1.2, "step": 0.5}),
        ("choice(a, '1')", ["1", "a"]),
    ],
)
def test_equal_spaces_have_one_fingerprint_which_reads_back(one: Any, other: Any) -> None:
    print_of = read({"x": one}).fingerprint()["x"]
    assert print_of == read({"x": other}).fingerprint()["x"]
    assert print_of == read({"x": print_of}).fingerprint()["x"]
    assert read({"x": one}).distributions == read({"x": other}).distributions


def test_other_spaces_and_other_conditions_have_other_fingerprints() -> None:
    texts = ["interval(1,2)", "int(interval(1,2))", "tag(log,interval(1,2))", "1,2", "'1',2"]
    found = {read({"x": text}).fingerprint()["x"] for text in texts}
    when = [{"a": 1}, {"a": "1"}, {"a": ">= 1"}, {"a": [1, 2]}]
    found |= {read({"x": {"space": "1,2", "when": w}}).fingerprint()["x"] for w in when}
    assert len(found) == len(texts) + len(when)


# --- writing out -------------------------------------------------------------------------------

AWKWARD = [
    *("a b", "a,b", "it's", 'say "x"', "1", "1e-5", "null", "true", "nan", "inf", "", "a=b", "é"),
    *("[a]", "{a:1}", "\\", "a\\'b", "\\'", "end\\", " lead", "tab\tb", "${x}", "a:b", "#", "-1"),
    *("two\nlines", "'quoted'", "choice(1,2)", "x/y.z-1", "NULL", "$", "a$b", "@", "1_0", "~", "*"),
]


@pytest.mark.parametrize("value", [*AWKWARD, 1, 1.0, 1e-5, 1e16, 0.1 + 0.2, -3, 5e-324])
def test_a_word_that_hydra_reads_gives_the_same_value(value: Any) -> None:
    space = read({"x": [value, "other"]})
    (word,) = space.words({"x": value})
    back = parsed(word)
    assert back == value
    assert type(back) is type(value)
    assert parsed(f"x=[{text_of(value)}]") == [value]  # within a list as well
    assert read({"x": space.fingerprint()["x"]}).grid() == space.grid()


@pytest.mark.parametrize(
    "text", ["choice([a,'1',null],[1.5,true])", "{a:1,b:'2'},{c:[1]}", "null,'null'", "1e3,'1e3'"]
)
def test_lists_mappings_and_look_alikes_come_back(text: str) -> None:
    space = read({}, f"x={text}")
    back = [parsed(word) for value in space.grid()["x"] for word in space.words({"x": value})]
    written = [element for element in OverridesParser.create().parse_overrides([f"x={text}"])]
    wanted = [getattr(one, "text", one) for one in written[0]._value.list]
    assert sorted(map(repr, back)) == sorted(repr(parsed_plain(one)) for one in wanted)


def parsed_plain(element: Any) -> Any:
    if isinstance(element, list):
        return [parsed_plain(one) for one in element]
    if isinstance(element, dict):
        return {key: parsed_plain(one) for key, one in element.items()}
    return getattr(element, "text", element)


def test_values_come_back_equal_from_a_journal_and_from_hydra(tmp_path: Path) -> None:
    params = {
        "a": AWKWARD,
        "b": "null,true,1.5,2,'2'",
        "c": "tag(log, interval(1e-5, 1e-1))",
        "d": "range(0.1, 0.8, 0.1)",
        "e": "int(tag(log, interval(1, 64)))",
        "f": "choice([a,b],[c])",
    }
    space = read(params)
    sampler = optuna.samplers.RandomSampler(seed=0)

    def study() -> optuna.Study:
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        return optuna.create_study(
            storage=storage, study_name="s", load_if_exists=True, sampler=sampler
        )

    asked = []
    for _ in range(40):
        trial = study().ask()
        asked.append(space.suggest(trial))
        study().tell(trial, 0.0)
    for values, trial in zip(asked, study().trials, strict=True):
        assert list(values) == list(params)
        assert space.words(values) == space.words(trial.params)
        back = {name: parsed(word) for name, word in zip(values, space.words(values), strict=True)}
        assert back | {"f": text_of(back["f"])} == values
        assert {type(back[name]) for name in "cd"} == {float}
    assert {values["d"] for values in asked} == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}


def test_a_study_goes_on_when_its_choice_is_written_in_another_order() -> None:
    study = optuna.create_study()
    for text in ("choice(b, a, 1)", "1,a,b"):
        study.tell(study.ask(), 0.0)
        trial = study.ask()
        read({"x": text}).suggest(trial)
        study.tell(trial, 0.0)
    assert len(study.trials) == 4


def test_a_value_outside_the_space_is_never_written_out() -> None:
    space = read({"x": "range(0.1, 0.6, 0.1)", "y": "choice(1, 2)"})
    with pytest.raises(SpaceError, match=r"x: 0\.25 is not in range\(0\.1, 0\.6, 0\.1\)"):
        space.words({"x": 0.25})
    with pytest.raises(SpaceError, match="y: True is not in"):
        space.words({"y": True})
    with pytest.raises(SpaceError, match="z: not searched; the space has x, y"):
        space.words({"z": 1})


# --- asking ------------------------------------------------------------------------------------


def test_a_condition_looks_at_chosen_values_and_at_the_configuration(cfg: DictConfig) -> None:
    params = {
        "optim.momentum": {"space": "interval(0.5, 0.9)", "when": {"optim.name": "sgd"}},
        "optim.nesterov": {"space": "true,false", "when": {"optim.momentum": "> 0.7"}},
        "optim.steps": {"space": "range(1, 5)", "when": {"head": "mlp", "optim.mode": "no"}},
        "optim.lr": {"space": "interval(0, 1)", "when": {"head": "linear"}},
    }
    space = checked(cfg, params, "optim.name=choice(adam,sgd)")
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


def test_fixing_a_group_leaves_what_depends_on_it_unasked(cfg: DictConfig) -> None:
    params = {
        "head": "choice(mlp, none)",
        "head.depth": {"space": "range(1, 5)", "when": {"head": "none"}},
    }
    space = checked(cfg, params, "head=mlp")
    assert space.names == ["head.depth"]
    assert space.suggest(optuna.create_study().ask()) == {} == space.defaults(from_config(cfg))
    cfg.hydra.runtime.choices.head = "none"
    with pytest.raises(SpaceError, match=r"no key head\.depth"):
        checked(cfg, params, "head=none")


def test_forbidden_combinations_are_named(cfg: DictConfig) -> None:
    space = checked(
        cfg,
        {"pair.low": "interval(0, 1)", "optim.name": "adam,sgd", "optim.lr": "interval(0, 1)"},
        forbid=[
            {"pair.low": ">= pair.high"},
            {"optim.name": "sgd", "optim.lr": "> 0.5", "head": ["mlp", "none"]},
        ],
    )
    lookup = from_config(cfg)
    assert space.forbidden({"pair.low": 0.95}, lookup) == "pair.low >= pair.high"
    assert space.forbidden({"pair.low": 0.5}, lookup) is None
    broken = space.forbidden({"optim.name": "sgd", "optim.lr": 0.6}, lookup)
    assert broken == "head in [mlp, none] and optim.lr > 0.5 and optim.name == sgd"
    assert space.forbidden({"optim.name": "adam", "optim.lr": 0.6}, lookup) is None
    cfg.hydra.runtime.choices.head = "linear"
    assert space.forbidden({"optim.name": "sgd", "optim.lr": 0.6}, lookup) is None


def test_the_defaults_are_the_configurations_own_values(cfg: DictConfig) -> None:
    space = checked(
        cfg,
        {
            "optim.lr": "tag(log, interval(1e-5, 1e-1))",
            "head.rate": "range(0.001, 0.005, 0.001)",
            "optim.mode": "choice(no, bf16)",
            "optim.momentum": "null,0.9",
            "head": "choice(mlp, linear)",
            "optim.size": "choice([8,8],[16,16])",
            "head.queries": "float(choice(24, 48))",
            "optim.steps": {"space": "range(1, 3)", "when": {"head": "linear"}},
        },
        forbid=[{"optim.lr": "> 0.5"}],
    )
    found = space.defaults(from_config(cfg))
    assert found == {
        "optim.lr": 0.001,
        "head.rate": 0.001,
        "optim.mode": "no",
        "optim.momentum": None,
        "head": "mlp",
        "optim.size": "[8,8]",
        "head.queries": 24.0,
    }
    study = optuna.create_study()
    study.enqueue_trial(found)
    assert space.suggest(study.ask()) == found


@pytest.mark.parametrize(
    ("params", "forbid"),
    [
        ({"optim.lr": "interval(0.5, 1)"}, ()),
        ({"optim.steps": "range(1, 20, 2)"}, ()),
        ({"optim.name": "choice(sgd, lion)"}, ()),
        ({"head": "choice(linear, none)"}, ()),
        ({"loss": "choice([mask],[margin])"}, ()),
        ({"+new": "null,1"}, ()),
        ({"seed": "range(3)"}, [{"seed": 0}]),
    ],
)
def test_there_are_no_defaults_where_one_lies_outside(
    cfg: DictConfig, params: dict[str, Any], forbid: Any
) -> None:
    assert checked(cfg, params, forbid=forbid).defaults(from_config(cfg)) is None


def test_a_grid_is_tried_to_its_end_by_optuna() -> None:
    space = read({"x": "range(0.1, 0.4, 0.1)", "y": "null,a,1", "z": "choice([a],[b])"})
    sampler = optuna.samplers.GridSampler(space.grid(), seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: 0.0 * len(space.suggest(trial)), n_trials=100)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 18 == len(study.trials)


def test_a_grid_names_what_has_no_finite_list() -> None:
    space = read({"a": "1,2", "b": "interval(1, 2)", "c": {"space": "1,2", "when": {"a": 1}}})
    with pytest.raises(SpaceError, match=r"b is interval\(1\.0, 2\.0\); c has a condition"):
        space.grid()


# --- refusing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("choice(null, a)", "takes no null: write x=null,a"),
        ("interval(4,", "x: 'interval(4,' is not in Hydra's grammar"),
        ("uniform(1, 2)", "Unknown function 'uniform'"),
        ("tag(log, 1, 2)", "Right are choice(a, b)"),
        ("interval(5, 1)", "write interval(1.0, 5.0)"),
        ("interval(2, 2)", "one value and nothing to search: write x=2.0 among the overrides"),
        ("int(interval(2, 2))", "write x=2 among"),
        ("interval(0, inf)", "needs two finite ends"),
        ("choice(a)", "choice(a) has one value and nothing to search: write x=a"),
        ("choice(a, b, a)", "a and a are one and the same choice"),
        ("choice(1, 1.0)", "1 and 1.0 are one and the same"),
        ("1,true", "1 and true are one and the same"),
        ("choice(nan, 1)", "nan is no value"),
        ("range(4, 4)", "range(4, 4, 1) is empty"),
        ("range(4, 1)", "is empty: write range(1, 4, 1)"),
        ("range(1, 4, 0)", "a step that is not 0"),
        ("range(3, 4)", "one value and nothing to search"),
        ("tag(log, interval(0, 1))", "log needs a low end above 0, got 0.0: write tag(log,"),
        ("int(tag(log, interval(0, 9)))", "write int(tag(log, interval(1, 64)))"),
        ("tag(log, range(1, 9, 2))", "log has no step"),
        ("tag(log, choice(1, 2))", "a choice has no log"),
        ("tag(lin, interval(1, 2))", "tag lin means nothing"),
        ("3", "'3', which is no space"),
        (3, "got 3, which is no space"),
        (None, "got None, which is no space"),
        ({"space": "1,2", "whem": {}}, "a mapping is {space:"),
        ({"low": 1}, "a mapping is {space:"),
        ({"low": 1, "high": 2.5, "int": True}, "int: true needs whole numbers"),
        ({"space": "1,2", "when": {}}, "x: when: got {}"),
    ],
)
def test_a_space_that_says_nothing_is_refused_with_the_line_to_type(
    text: Any, message: str
) -> None:
    with pytest.raises(SpaceError) as error:
        read({"x": text})
    assert message in str(error.value)
    assert "x" in str(error.value).split(":")[0]


def test_settings_of_hydra_are_not_searched() -> None:
    with pytest.raises(SpaceError, match="a setting of Hydra cannot be searched"):
        read({}, "hydra.job.name=a,b")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"optim.rl": "1,2"}, "no key optim.rl; did you mean optim.lr? To add one"),
        ({"optim.rl": "1,2"}, "write +optim.rl=choice(1, 2)"),
        ({"+optim.lr": "1,2"}, "the configuration has this key: write optim.lr=choice(1, 2)"),
        (
            {"optim.steps": "interval(4, 64)"},
            "optim.steps is an int: write int(interval(4, 64)).",
        ),
        (
            {"optim.steps": "tag(log, interval(0.5, 64))"},
            "write int(tag(log, interval(1, 64))).",
        ),
        ({"optim.steps": "float(interval(4, 64))"}, "optim.steps is an int"),
        (
            {"head.queries": "interval(8, 64)"},
            "int(interval(8, 64)), or float(interval(8.0, 64.0)) if",
        ),
        ({"optim.steps": "choice(1, 2.5)"}, "optim.steps is an int: write choice(1, 2); 2.5 in"),
        ({"optim.steps": "null,1"}, "null in null,1 is not"),
        ({"optim.lr": "choice(a, b)"}, "optim.lr is a number: write choice(0.1, 0.2); a in"),
        ({"head.queries": "choice(a, b)"}, "head.queries is an int"),
        ({"head.rate": "choice(a, b)"}, "head.rate is a number"),
        ({"optim.nesterov": "interval(0, 1)"}, "write choice(true, false)"),
        ({"optim.nesterov": "0,1"}, "optim.nesterov is true or false"),
        ({"optim.mode": "choice(no, bf61)"}, "is one of no, bf16: write choice(no, bf16); bf61"),
        ({"optim.mode": "interval(0, 1)"}, "write choice(no, bf16)"),
        ({"optim.name": "interval(0, 1)"}, "optim.name is a word"),
        ({"optim.size": "choice(1, 2)"}, "optim.size is a list: write choice([1, 2], [3, 4])"),
        ({"optim": "choice(1, 2)"}, "write one of optim.name, optim.lr"),
        ({"head": "interval(1, 2)"}, "is a config group, interval(1.0, 2.0) cannot be"),
        ({"head": "choice(mpl, none)"}, "no option mpl; did you mean mlp? Its options are linear"),
        ({"loss": "choice([mask, margni],[mask])"}, "no option margni; did you mean margin?"),
        ({"experiment": "choice(eim, baseline)"}, "write +experiment=choice(baseline, eim)"),
        ({"+head": "choice(mlp, none)"}, "chosen already: write head=choice(mlp, none)"),
        ({"optim.lr": "glob(*)"}, "glob is for config groups"),
        ({"head": "glob(m*)"}, "finds 1 of the options linear, mlp, none"),
        (
            {"optim.lr": {"space": "interval(0, 1)", "when": {"optim.nam": "sgd"}}},
            "optim.lr: when: there is no key optim.nam; did you mean optim.name?",
        ),
        (
            {
                "optim.name": "adam,sgd",
                "optim.momentun": {"space": "interval(0, 1)", "when": {"optim.name": "sgd"}},
            },
            "no key optim.momentun; did you mean optim.momentum?",
        ),
        (
            {"optim.lr": {"space": "interval(0, 1)", "when": {"seed": 1}}, "seed": "range(3)"},
            "seed is asked later; put the line of seed above",
        ),
        (
            {"optim.lr": {"space": "interval(0, 1)", "when": {"optim.lr": "> 0"}}},
            "cannot wait for itself",
        ),
        (
            {
                "optim.name": "sgd,adam",
                "optim.lr": {"space": "interval(0, 1)", "when": {"optim.name": "sdg"}},
            },
            "optim.name is never sdg, only adam, sgd",
        ),
        (
            {"optim.lr": {"space": "interval(0, 1)", "when": {"head": "mpl"}}},
            "head is never mpl, only linear, mlp, none",
        ),
        (
            {"optim.lr": {"space": "interval(0, 1)", "when": {"optim.name": "> 3"}}},
            "optim.name > 3 compares numbers, and optim.name is adam",
        ),
    ],
)
def test_a_space_that_does_not_fit_is_refused_with_the_line_to_type(
    cfg: DictConfig, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpaceError) as error:
        checked(cfg, params)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "params",
    [
        {"optim.lr": "choice(1, 0.5)", "optim.momentum": "null,0.9", "optim.name": "a,1"},
        {"head.queries": "float(interval(8, 64))", "head.rate": "interval(0, 1)"},
        {"head.unset": "choice(a, 1)", "head.word": "interval(0, 1)"},
        {"++optim.steps": "choice(a, b)", "++brand.new": "1,2", "+also.new": "1,2"},
        {"loss": "choice([mask],[mask,penalty])", "+experiment": "glob(*)"},
        {"optim.steps": "choice(1, '${seed}')"},
        {"optim.size": "choice([1,2],[3,4])", "loss.mask.weight": "1,2"},
    ],
)
def test_what_fits_passes(cfg: DictConfig, params: dict[str, Any]) -> None:
    assert len(checked(cfg, params)) == len(params)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"pair.low": ">= pair.hihg"}, "forbid[0]: there is no key pair.hihg; did you mean"),
        ({"optim.name": "== pair.hihg"}, "If a word is meant, write \"== 'pair.hihg'\""),
        ({"pair.lwo": 1}, "did you mean pair.low?"),
        ({"pair.low": ">= optim.name"}, "compares numbers, and optim.name is adam"),
        ({"head": "!= mpl"}, "head is never mpl"),
    ],
)
def test_rules_on_what_there_is_not_are_refused(
    cfg: DictConfig, rule: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpaceError) as error:
        checked(cfg, {"seed": "range(3)"}, forbid=[rule])
    assert message in str(error.value)


def test_a_glob_becomes_the_options_of_its_group(cfg: DictConfig) -> None:
    space = checked(cfg, {"head": "glob(*, exclude=n*)"})
    assert space.grid() == {"head": ["linear", "mlp"]}
    assert space.fingerprint() == {"head": "choice(linear, mlp)"}
    with pytest.raises(SpaceError, match="glob first"):
        _ = read({"head": "glob(*)"}).distributions


# --- with the configuration of this suite ------------------------------------------------------


@pytest.fixture(scope="module")
def suite() -> Iterator[Any]:
    """`compose(words)` and `groups(key)` of conf/."""
    register()
    conf = asset_dir("conf")

    def composed(words: list[str]) -> DictConfig:
        return compose("config", overrides=words, return_hydra_config=True)

    def groups(key: str) -> list[str] | None:
        return sorted(path.stem for path in (conf / key).glob("*.yaml")) or None

    with initialize_config_dir(str(conf), version_base="1.3"):
        yield composed, groups


def test_keys_that_a_searched_group_brings_are_checked_where_they_are(suite: Any) -> None:
    composed, groups = suite
    base = composed([])
    head = "choice(none, query_only)"
    depth = {"space": "range(1, 5)", "when": {"anomaly_head": "query_only"}}
    fine = read({"anomaly_head": head, "anomaly_head.num_layers": depth})
    fine.check(base, groups, composed)
    wrong = [
        ({"space": "interval(1, 5)", "when": depth["when"]}, "is an int: write int(interval(1, 5"),
        ("range(1, 5)", "when: {anomaly_head: query_only}"),
    ]
    for node, message in wrong:
        space = read({"anomaly_head": head, "anomaly_head.num_layers": node})
        with pytest.raises(SpaceError) as error:
            space.check(base, groups, composed)
        assert message in str(error.value)
    misspelt = read({"anomaly_head": head, "anomaly_head.num_layer": depth})
    misspelt.check(base, groups)  # nothing shows it without composing
    with pytest.raises(SpaceError, match=r"did you mean anomaly_head\.num_layers\?"):
        misspelt.check(base, groups, composed)


def test_a_condition_may_need_two_searched_groups_at_once(suite: Any) -> None:
    composed, groups = suite
    when = {"anomaly_head": "query_only", "outlier_exposure": "cut_paste"}
    params = {
        "anomaly_head": "choice(none, query_only)",
        "outlier_exposure": "choice(none, cut_paste)",
    }
    for key, is_right in (("anomaly_head.num_layers", True), ("anomaly_head.layers", False)):
        space = read({**params, key: {"space": "range(1, 5)", "when": when}})
        if is_right:
            space.check(composed([]), groups, composed)
        else:
            with pytest.raises(SpaceError, match="there is no key"):
                space.check(composed([]), groups, composed)


def test_declared_types_and_choices_of_the_suite_are_seen(suite: Any) -> None:
    composed, groups = suite
    cfg = composed(["+experiment=eim_oe"])
    space = read({"trainer.precision": "no,bf16", "backbone": "glob(*)", "optim.lr": "1e-3,1e-4"})
    space.check(cfg, groups)
    found = space.defaults(from_config(cfg))
    assert found is None  # precision is auto
    tuned = read({"benchmark@tuning": {"space": "glob(*)", "when": {"data": "synthetic_roads"}}})
    tuned.check(cfg, groups)
    assert tuned.defaults(from_config(cfg)) == {"benchmark@tuning": "none"}
    assert tuned.words({"benchmark@tuning": "none"}) == ["benchmark@tuning=none"]
    with pytest.raises(SpaceError, match=r"trainer\.batch_size is an int: write int\(interval\(4"):
        read({"trainer.batch_size": "interval(4, 64)"}).check(cfg, groups)
    with pytest.raises(SpaceError, match="experiment is chosen already"):
        read({"+experiment": "baseline,eim"}).check(cfg, groups)
    words = read({"experiment": "baseline,eim"}).words({"experiment": "eim"})
    assert composed(["+experiment=eim_oe", *words]).name == "eim"


# --- rules -------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "name": "sgd",
    "lr": 0.1,
    "n": 3,
    "flag": True,
    "none": None,
    "mode": Mode.bf16,
    "loss": ["mask", "margin"],
    "a.low": 1,
    "a.high": 2,
}


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({"name": "sgd"}, True),
        ({"name": "== sgd"}, True),
        ({"name": "!= sgd"}, False),
        ({"name": ["adam", "sgd"]}, True),
        ({"name": ["adam"]}, False),
        ({"n": 3.0}, True),
        ({"n": "3"}, False),
        ({"n": "== 3"}, True),
        ({"n": "== '3'"}, False),
        ({"flag": 1}, False),
        ({"flag": "== true"}, True),
        ({"n": True}, False),
        ({"none": None}, True),
        ({"none": "!= null"}, False),
        ({"none": "< 3"}, False),
        ({"n": "< 3"}, False),
        ({"n": "<= 3"}, True),
        ({"n": ">-1e3"}, True),
        ({"flag": "> 0"}, False),
        ({"mode": "bf16"}, True),
        ({"mode": ["no"]}, False),
        ({"loss": "margin"}, True),
        ({"loss": "!= margin"}, False),
        ({"a.low": "< a.high"}, True),
        ({"a.low": "== a.high"}, False),
        ({"a.low": "!= a.high"}, True),
        ({"absent": "!= 3"}, False),
        ({"n": "< absent"}, False),
        ({"name": "sgd", "n": "> 3"}, False),
        ({"name": "sgd", "n": ">= 3"}, True),
    ],
)
def test_rules_compare_as_they_read(rule: dict[str, Any], holds: bool) -> None:
    assert parse_rule(rule, "here").holds(VALUES.__getitem__) is holds


def test_rules_that_say_the_same_have_one_text() -> None:
    one = parse_rule({"b": [2, 1, 2], "a": "== x"}, "here")
    assert one.text == "a == x and b in [1, 2]" == parse_rule({"a": ["x"], "b": [1, 2]}, "").text
    assert parse_rule({"a": ">= b.c", "d": "== e.f"}, "here").keys == ["a", "d", "b.c", "e.f"]


@pytest.mark.parametrize(
    "rule",
    [
        {},
        "a == 1",
        {"a": "= 3"},
        {"a": "=> 3"},
        {"a": "=< 3"},
        {"a": "> "},
        {"a": "== "},
        {"a": "> nan"},
        {"a": "> true"},
        {"a": "> two words"},
        {"a": []},
        {"a": ["> 3", "< 1"]},
        {"a": {"b": 1}},
        {"a": [[1]]},
    ],
)
def test_rules_that_cannot_be_read_say_where_and_how(rule: Any) -> None:
    with pytest.raises(SpaceError, match=r"^forbid\[2\].*") as error:
        parse_rule(rule, "forbid[2]")
    assert any(word in str(error.value) for word in ("write", "allowed", "comparisons are"))


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
    assert parse_constraints({"val/miou": bound})["val/miou"].violation(value) == violation


def test_a_strict_bound_is_not_kept_by_the_bound_itself() -> None:
    assert parse_constraints({"m": "> 0.5"})["m"].violation(0.5) > 0
    assert parse_constraints({"m": "< 0.5"})["m"].violation(0.5) > 0
    assert parse_constraints({"m": "< inf"})["m"].violation(math.inf) > 0


@pytest.mark.parametrize("bound", [0.5, "0.5", "== 0.5", ">= val/ap", ">= nan", ">=", None])
def test_a_bound_that_is_none_shows_the_line_to_type(bound: Any) -> None:
    with pytest.raises(SpaceError, match=r'write val/miou: ">= 0\.5"'):
        parse_constraints({"val/miou": bound})


def test_no_constraints_are_none() -> None:
    assert parse_constraints({}) == parse_constraints(None) == {}
