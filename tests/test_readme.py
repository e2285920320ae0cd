"""README's code runs, and the commands and files it names exist."""

import json
import re
import shlex
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_blocks_run(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # as it is for users
        exec(compile(BLOCKS[number], f"README block {number}", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)  # (.*)", BLOCKS[number])
    assert [line for line in promised if line not in printed] == []


def test_there_are_code_blocks():
    assert len(BLOCKS) == 2
    assert len(BLOCKS[0].strip().splitlines()) <= 10


def test_files_that_are_named_exist():
    named = set(re.findall(r"(?:configs|scripts)/\w+(?:\.py)?", README)) | set(
        re.findall(r"\]\((\.github/[^)]+)\)", README)
    )
    assert len(named) > 6
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_figures_of_the_reproduction_are_those_of_its_report():
    report = (ROOT / ".github" / "reproduction" / "report.md").read_text()
    section = README.partition("## The paper's tables")[2].partition("## The reference's commands")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) > 20
    assert [line for line in shown if line not in report.splitlines()] == []
    command = re.search(r"^    (python scripts/reproduce.py .*--width.*)$", section, re.M)[1]
    assert f"- command: {command}\n" in report
    results = json.loads((ROOT / ".github" / "reproduction" / "results.json").read_text())
    for number in re.findall(r"\d\d\.\d\d(?=\s+%)", section):  # in the text
        found = {f"{100 * value:.2f}" for seed in results for value in _accuracies(seed)}
        assert number in found, number


def _accuracies(seed):
    for stage in seed.values():
        yield from (row["accuracy"] for row in [stage, *stage.get("rows", [])] if "accuracy" in row)


def test_commands_take_the_flags_that_are_named():
    homes = {"-m jaxslim.train": "jaxslim/config.py"}
    command = r"python (-m jaxslim\.\w+|scripts/\w+\.py)"
    ticked, blocks = re.findall(f"`{command}([^`]*)`", README), re.findall(f"^    {command}(.*)$", README, re.M)
    assert len(ticked) > 6
    assert len(blocks) > 4
    for name, flags in (*ticked, *blocks):
        home = homes.get(name, name.replace("-m jaxslim.", "jaxslim/").removesuffix(".py") + ".py")
        fields = re.findall(r"^    (\w+):", (ROOT / home).read_text(), re.M)
        for flag in (word for word in shlex.split(flags, comments=True) if word.startswith("--")):
            field = flag[2:].replace("-", "_")
            assert flag == "--help" or {field, field.removeprefix("no_")} & set(fields), f"{name} has no {flag}"
