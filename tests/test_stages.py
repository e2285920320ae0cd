"""Stages: done once, gone on with, and what a failure takes along."""

import json
import re
import shutil
from typing import Any

import pytest

from jaxslim.errors import DivergedError, InputError
from jaxslim.experiments import stages
from jaxslim.experiments.stages import Outcome, Stage


def plan(calls: list[str], fail: str = "", **changes: Any) -> list[Stage]:
    """`b` needs `a`, `c` needs `b`; `d` needs nothing."""

    def stage(name: str, *needs: str) -> Stage:
        def work() -> dict[str, Any]:
            calls.append(name)
            if name == fail:
                raise DivergedError(f"{name} went wrong")
            return {"value": name * 2}

        return Stage(name, {"epochs": 3, "widths": (4, "M")} | changes.get(name, {}), work, needs)

    return [stage("a"), stage("b", "a"), stage("c", "b"), stage("d")]


BROKEN = ['{"spec": {}, "result": 1, "seconds": 0}', '{"spec": null, "result": {"a": 1}, "seconds": 0}']
BROKEN += ['{"spec": {}, "result": {}, "seconds": 0}']


def run(folder: Any, planned: list[Stage]) -> dict[str, Outcome]:
    return stages.run(folder, planned, lambda name: None)


def test_each_is_done_once(tmp_path: Any) -> None:
    calls: list[str] = []
    first = run(tmp_path, plan(calls))
    assert calls == ["a", "b", "c", "d"]
    assert first["b"].result == {"value": "bb"}
    assert run(tmp_path, plan(calls)) == first
    (tmp_path / "c.json").unlink()
    run(tmp_path, plan(calls))
    assert calls == ["a", "b", "c", "d", "c"]


def test_a_failure_takes_those_along_that_need_it(tmp_path: Any, capsys: Any) -> None:
    calls: list[str] = []
    outcomes = run(tmp_path, plan(calls, fail="a"))
    assert calls == ["a", "d"]
    assert [outcome.failure for outcome in outcomes.values()] == [
        "a went wrong",
        "not run, since a failed",
        "not run, since b failed",
        "",
    ]
    assert capsys.readouterr().err == "a failed: a went wrong\n"
    run(tmp_path / "other", plan([], fail="c"))
    advice = f"(To repeat what it needs, delete {tmp_path}/other/b.json and the folder beside it.)"
    assert capsys.readouterr().err == f"c failed: c went wrong {advice}\n"
    shutil.rmtree(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.json"]
    assert not any(outcome.failure for outcome in run(tmp_path, plan(calls)).values())
    assert calls == ["a", "d", "a", "b", "c"]


def test_a_result_of_another_configuration_is_refused_before_any_work(tmp_path: Any) -> None:
    run(tmp_path, plan([]))
    (tmp_path / "a.json").unlink()
    calls: list[str] = []
    message = f"{tmp_path}/d.json is of another configuration (epochs 3 there, 4 here); choose another --out."
    with pytest.raises(InputError, match=re.escape(message)):
        run(tmp_path, plan(calls, d={"epochs": 4}))
    assert not calls


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 10**5, *BROKEN])
def test_a_result_that_cannot_be_read(tmp_path: Any, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a.json cannot be read; delete it and those of later stages"):
        run(tmp_path, plan([]))


def test_errors_of_ours_are_not_hidden(tmp_path: Any) -> None:
    def work() -> dict[str, Any]:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        run(tmp_path, [Stage("a", {}, work)])
    assert not list(tmp_path.iterdir())


def test_a_result_says_what_it_is_of(tmp_path: Any) -> None:
    run(tmp_path, plan([]))
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["spec"] == {"epochs": 3, "widths": [4, "M"]}
    assert record["result"] == {"value": "aa"}
