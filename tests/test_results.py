"""bench/results.py: what it makes of a run of pytest-benchmark and of the papers' JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import results
import sparsity
import timing
from timing import interleaved

MACHINE = {"cpu": {"brand_raw": "A Processor"}, "crest": {"torch": "2.13.0"}}


def bench(name: str, median: float, params: dict[str, Any] | None = None, **info: Any) -> dict[str, Any]:
    return {"name": name, "group": "a group", "params": params, "stats": {"median": median}, "extra_info": info}


def report(*benchmarks: dict[str, Any], folder: Path) -> list[str]:
    commit = {"id": "0123456789abcdef", "dirty": False}
    run = {"machine_info": MACHINE, "commit_info": commit, "datetime": "2026-11-22T12:00:00.5", "version": "5.3.1"}
    return results.report(run | {"benchmarks": list(benchmarks)}, folder).splitlines()


def test_one_benchmark_a_row(tmp_path: Path) -> None:
    info = {"case": "fc1", "threads": 1, "others": {"torch": 3e-3, "peer": 2e-3}, "not run": {"gone": "not installed"}}
    info |= {"GB/s": 8.0, "of limit": 0.87, "limits": {"update GB/s": 9.25}}
    lines = report(bench("bench_a[fc1]", 1e-3, who="crest", **info), folder=tmp_path)
    assert "| case | crest | torch | peer | best other / crest | GB/s | of limit |" in lines
    assert "| fc1 | 1 ms | 3 ms | 2 ms | 2.00x | 8.00 | 87% |" in lines
    assert "Not run: gone: not installed." in lines
    assert "| 1 | 9.25 |" in lines
    assert {"| commit | 0123456789ab |", "| processor | A Processor |", "| torch | 2.13.0 |"} <= set(lines)


@pytest.mark.parametrize("key", ["who", "implementation"])
def test_plain_benchmarks(key: str, tmp_path: Path) -> None:
    """One benchmark for each of those compared, told apart by a parameter; a row may lack one."""
    measured = {("crest", "conv1"): 5e-7, ("torch", "conv1"): 4e-7, ("crest", "conv2"): 2.0}
    benches = [bench("bench_b", t, {key: who, "layer": layer}) for (who, layer), t in measured.items()]
    lines = report(*benches, folder=tmp_path)
    assert "| case | crest | torch | best other / crest |" in lines
    assert "| conv1 | 500 ns | 400 ns | 0.80x |" in lines
    assert "| conv2 | 2 s |  |  |" in lines


def test_papers(tmp_path: Path) -> None:
    section = {"title": "Surgery", "command": "python bench/papers/surgery.py", "columns": ["network", "error"]}
    section |= {"rows": [["LeNet", 0.0091], ["a|b", 1]], "notes": "Three seeds."}
    (tmp_path / "surgery.json").write_text(json.dumps([section]))
    lines = report(folder=tmp_path)
    assert lines[lines.index("### Surgery") :] == [
        "### Surgery",
        "",
        "`python bench/papers/surgery.py`",
        "",
        "| network | error |",
        "| --- | --- |",
        "| LeNet | 0.0091 |",
        "| a\\|b | 1 |",
        "",
        "Three seeds.",
    ]


def test_papers_are_renewed_alone(tmp_path: Path) -> None:
    section = {"title": "Surgery", "command": "a", "columns": ["error"], "rows": [["0.0091"]], "notes": []}
    (tmp_path / "surgery.json").write_text(json.dumps([section]))
    before = report(bench("bench_b", 2.0, {"who": "crest"}), folder=tmp_path)
    (tmp_path / "surgery.json").write_text(json.dumps([section | {"rows": [["0.0088"]]}]))
    after = results.renewed("\n".join(before) + "\n", tmp_path).splitlines()
    assert after == [line.replace("0.0091", "0.0088") for line in before]
    assert after != before


def test_interleaved() -> None:
    calls: list[str] = []
    medians = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert calls == ["a", "b"] + (["a"] * timing.IN_A_ROW + ["b"] * timing.IN_A_ROW) * 4
    assert set(medians) == {"a", "b"}
    assert all(seconds > 0 for seconds in medians.values())


def test_headlines_replace_the_readmes_table(tmp_path: Path) -> None:
    section = {"title": "t", "columns": [], "rows": [], "headlines": [["LeNet: bytes", "1,000", "10", "100x"]]}
    (tmp_path / "a.json").write_text(json.dumps([section]))
    info = {"case": "fc1", "headline": "a step", "others": {"torch": 3e-3, "peer": 2e-3}}
    benches = [bench("bench_a", 1e-3, who="crest", **info), bench("bench_b", 1.0, who="crest")]
    lines = list(results.headlines({"machine_info": MACHINE, "benchmarks": benches}, tmp_path))
    assert lines[2:4] == ["| LeNet: bytes | 1,000 | 10 | 100x |", "| a step | 2 ms, peer | 1 ms | 2.0x |"]
    assert lines[-1].startswith("A Processor, torch 2.13.0, ")
    readme = f"above\n{results.MARKS[0]}\nold\n{results.MARKS[1]}\nbelow\n"
    once = results.into_readme(readme, lines)
    assert once == results.into_readme(once, lines)
    assert once.startswith("above\n")
    assert once.endswith("\nbelow\n")
    assert "old" not in once


def test_long_functions_are_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORT", 0.0)
    calls: list[str] = []
    interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert calls == ["a", "b"] * 5


def test_all_are_called_as_often_as_the_fastest_unless_they_are_long() -> None:
    calls: list[str] = []
    functions = {
        name: lambda name=name, seconds=seconds: calls.append(name) or timing.Seconds(seconds)
        for name, seconds in (("short", timing.SHORT), ("longer", 2 * timing.SHORT), ("long", 2 * timing.LONG))
    }
    interleaved(functions, rounds=1, warmup=0)
    assert calls == [*functions, *["short"] * timing.IN_A_ROW, *["longer"] * timing.IN_A_ROW, "long"]


def test_the_picture_of_sparsity_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in (("LAYER", (8, 16)), ("ROWS", (1,)), ("ZEROS", [0.5])):
        monkeypatch.setattr(sparsity, name, small)
    seconds = sparsity.measure()["seconds"]["1"]["0.5"]
    assert {sparsity.OURS, sparsity.DENSE, "torch CSR"} <= seconds.keys()
    assert all(s > 0 for s in seconds.values())
