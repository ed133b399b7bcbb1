"""README.md and docs/: every command in a fenced block composes, every link leads to a file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.types import RunMode

from eomt_exp import cli
from eomt_exp.paths import asset_dir
from tests.command_line import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
STARTS = re.compile(
    r"^(?:python|torchrun .*?|accelerate launch.*?) -m eomt_exp\b|^eomt-exp\b|^make\b"
)
PLACEHOLDER = re.compile(r"<[^>]+>|…")
VALUES = ("job", "my_conf")  # of the flags --cfg and --config-dir


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the program and the arguments of each command line of ours in fenced blocks."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if start := STARTS.match(line):
                rest = PLACEHOLDER.sub("placeholder", line[start.end() :])
                yield start[0].split()[-1], shlex.split(rest, comments=True)


def first_value(override: Override) -> str:
    """Return an override of a sweep as its first job has it."""
    if not override.is_sweep_override():
        return override.input_line
    swept, key = override.value(), override.get_key_element()
    if isinstance(swept, IntervalSweep):
        return f"{key}={swept.start}"
    return f"{key}={next(override.sweep_string_iterator())}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_composes(page: Path, tmp_path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S):
        path = tmp_path / re.search(r"^# my_conf/(\S+)$", text, re.M)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    parser = OverridesParser.create()
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        for program, arguments in commands(page):
            if program == "make":
                assert arguments[0] in targets, arguments
                continue
            typed = [one for one in arguments if not one.startswith("-") and one not in VALUES]
            overrides = [first_value(one) for one in parser.parse_overrides(typed)]
            loader = GlobalHydra.instance().config_loader()
            where = f"hydra.searchpath=[file://{tmp_path}]"
            assert loader.load_configuration("config", [*overrides, where], RunMode.MULTIRUN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert not [one for one in links if "://" not in one and not (page.parent / one).exists()]


def test_every_page_is_named_on_the_front_page() -> None:
    front = PAGES[0].read_text()
    assert len(front.splitlines()) <= 150
    assert not [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in front]
