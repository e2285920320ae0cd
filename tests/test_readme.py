"""README's code runs, the commands, files and places that it names exist, and its figures are those of the reports."""

import dataclasses
import importlib
import json
import re
import shlex
from pathlib import Path

import jax
import pytest

from jaxslim import TrainConfig
from jaxslim.experiments.configs import packaged

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
KINDS = dict(re.findall(r"```python (\w+)\n(.*?)```", README, re.S))


def test_code_blocks_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    with jax.numpy_rank_promotion("allow"):  # as it is for users
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README block {number}", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)  # (\(.*)", "".join(BLOCKS))
    assert len(promised) > 0
    assert [line for line in promised if line not in printed] == []
    kernels = [names["variables"]["params"][f"Conv_{i}"]["kernel"] for i in range(2)]
    assert sum(kernel.shape[-1] for kernel in kernels) == 48  # half of Net's channels are left


@pytest.mark.parametrize("package", KINDS)
def test_a_model_of_each_kind_is_cut_in_five_lines(package, tmp_path, monkeypatch):
    pytest.importorskip({"equinox": "equinox", "haiku": "haiku", "keras": "keras"}[package], reason="an extra package")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    code = KINDS[package]
    assert len([line for line in code.splitlines() if line]) <= 6
    data = "import jax, jaxslim, numpy as np\nimages = np.ones((3, 8, 8, 1), np.float32)\n"
    names = {"__name__": "readme"}
    with jax.numpy_rank_promotion("allow"):
        exec(compile(data + code, f"README block {package}", "exec"), names)
    assert names["logits"].shape == (3, 10)


def test_own_network_takes_ten_lines_and_own_loop_twenty():
    assert len(BLOCKS) == 9
    lines = [len([line for line in block.splitlines() if line]) for block in BLOCKS]
    assert lines[1] <= 10
    assert lines[2] <= 6
    assert lines[4] <= 20
    assert lines[5] <= 5


def test_files_that_are_named_exist():
    named = set(re.findall(r"(?:configs|scripts)/\w+(?:/\w+)*(?:\.\w+)?", README))
    named |= set(re.findall(r"\]\((?!http|#)([^)]+)\)", README))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_links_within_lead_to_headings():
    headings = re.findall(r"^#+ (.*)$", README, re.M)
    places = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    named = re.findall(r"\]\(#([^)]+)\)", README)
    assert len(named) > 10
    assert [name for name in named if name not in places] == []


def test_figures_of_the_reproduction_are_those_of_its_report():
    report = (ROOT / ".github" / "reproduction" / "report.md").read_text()
    section = README.partition("### CIFAR-10")[2].partition("### The paper's other")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) > 20
    assert [line for line in shown if line not in report.splitlines()] == []
    command = re.search(r"^    (python scripts/reproduce.py .*--width.*)$", section, re.M)[1]
    assert f"- command: {command}\n" in report
    results = json.loads((ROOT / ".github" / "reproduction" / "results.json").read_text())
    for number in re.findall(r"\d\d\.\d\d(?=\s+%)", section):  # in the text
        found = {f"{100 * value:.2f}" for seed in results for value in _accuracies(seed)}
        assert number in found, number


def test_figures_of_other_networks_are_those_of_their_reports():
    reports = [file.read_text() for file in (ROOT / ".github" / "reproduction").glob("*/report.md")]
    section = README.partition("### The paper's other networks")[2].partition("### Speed")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) == 5 * len(reports)
    assert [line for line in shown if not any(line in report.splitlines() for report in reports)] == []
    commands = re.findall(r"^    (python scripts/reproduce.py .*)$", section, re.M)
    assert all(any(f"- command: {command}\n" in report for report in reports) for command in commands)
    assert len(commands) == len(reports)


def test_figures_of_the_criteria_are_those_of_their_reports():
    reports = [file.read_text() for file in (ROOT / ".github" / "criteria").glob("*.md")]
    lines = [line for report in reports for line in report.splitlines()]
    section = README.partition("### Which criterion")[2].partition("## Details")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) > 20
    assert [line for line in shown if line not in lines] == []
    commands = re.findall(r"^    (python scripts/criteria.py.*)$", section, re.M)
    assert sorted(f"- command: {command}" for command in commands) == sorted(
        line for line in lines if line.startswith("- command: ")
    )
    known = {number for line in lines for number in re.findall(r"\d+\.\d\d", line)}
    assert [number for number in re.findall(r"(\d+\.\d\d) %", section) if number not in known] == []


def _accuracies(seed):
    for stage in seed.values():
        yield from (row["accuracy"] for row in [stage, *stage.get("rows", [])] if "accuracy" in row)


def test_commands_take_the_options_that_are_named():
    command = r"(jaxslim (?:train|prune|sweep|sensitivity|evaluate|predict|export|import)|python scripts/\w+\.py)"
    ticked, blocks = re.findall(f"`{command}([^`]*)`", README), re.findall(f"^    {command}(.*)$", README, re.M)
    assert len(ticked) > 6
    assert len(blocks) > 10
    for name, rest in (*ticked, *blocks):
        words = shlex.split(rest, comments=True)
        given = {word[2:].replace("-", "_") for word in words if word.startswith("--")} - {"help", "list"}
        unknown = {option for option in given if not {option, option.removeprefix("no_")} & _options(name)}
        assert unknown == set(), name
        if name == "jaxslim train" and words and words[0][0] not in "-.":
            assert words[0] in packaged()


def _options(command):
    """Fields of what a command reads its options into."""
    if command == "jaxslim train":
        return {field.name for field in dataclasses.fields(TrainConfig)}
    name = command.removeprefix("python scripts/").removesuffix(".py").replace("ratio_sweep", "jaxslim sweep")
    name = name.replace("jaxslim import", "jaxslim importing")
    module = importlib.import_module(name.replace("jaxslim ", "jaxslim.commands."))
    return {field.name for field in dataclasses.fields(module.Options)}
