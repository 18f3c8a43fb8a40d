"""The command line as its users call it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from crest_ext import _C, __version__, cli, data, report, train
from crest_ext.cli.demo import interleaved
from crest_ext.container import load_file, safe_open, save_file
from crest_ext.models import MODELS, LayerCost
from crest_ext.rewrite import PackedLayer

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """
model: lenet_digits
data: digits
phases:
  - {name: dense, iterations: 30, lr: 0.05}
  - {name: surgery, iterations: 10, lr: 0.01, surgery: {c_rate: {ip1: 0.5}, iter_stop: 5}}
"""
OWN = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

def loaders():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    return [(x, (x[:, 0] > 0).long())], [(x, (x[:, 0] > 0).long())]

number = lambda: 3
"""
OWN_RECIPE = """
phases:
  - {name: dense, iterations: 20, lr: 0.1}
  - {name: surgery, iterations: 5, lr: 0.01, surgery: {c_rate: {"1": 0.5}, iter_stop: 3}}
"""


def crest(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in args])


def ok(*args: object) -> Any:
    """The JSON of a command that succeeds."""
    result = crest(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fails(*args: object) -> str:
    """The one line of a command that the user got wrong."""
    result = crest(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    *progress, message = result.stderr.splitlines()
    assert all(line.startswith(("dense ", "surgery ")) for line in progress)  # bars, where it had begun
    assert message.startswith("crest: ")
    return str(message).removeprefix("crest: ")


def printed(result: report.Report) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(result.table())
    return capture.get()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(OWN_RECIPE)
    return tmp_path


def test_train_compress_eval_inspect(folder: Path) -> None:
    trained = ok("train", "--recipe", "r.yaml", "--out", "dense.crest", "--seed", 1)
    assert [p["name"] for p in trained["phases"]] == ["dense"]
    assert trained["bytes"] == (folder / "dense.crest").stat().st_size

    small = ok("compress", "dense.crest", "--recipe", "r.yaml", "--out", "small.crest", "--seed", 1)
    assert [p["name"] for p in small["phases"]] == ["surgery"]
    assert small["bytes"] < trained["bytes"]
    assert small["phases"][0]["kept"] < small["phases"][0]["total"] == 114_760

    whole = ok("compress", "--recipe", "r.yaml", "--out", "whole.crest", "--seed", 1)
    assert [p["kept"] for p in whole["phases"]] == [trained["phases"][0]["kept"], small["phases"][0]["kept"]]
    assert (folder / "whole.crest").read_bytes() == (folder / "small.crest").read_bytes()

    quantize = "  - {name: quantize, iterations: 10, lr: 0.001, quantize: {lam: 0.003, levels: 8}}\n"
    (folder / "few.yaml").write_text(RECIPE + quantize)
    few = ok("compress", "dense.crest", "--recipe", "few.yaml", "--out", "few.crest", "--seed", 1)
    assert [p["name"] for p in few["phases"]] == ["surgery", "quantize"]
    assert few["bytes"] < 0.5 * small["bytes"]
    assert all(len(tensor.unique()) <= 9 for tensor in load_file(folder / "few.crest").values())

    found = ok("eval", "small.crest")
    assert found == {
        "file": "small.crest",
        "error": small["phases"][0]["error"],
        "kept": small["phases"][0]["kept"],
        "total": 114_760,
        "bytes": small["bytes"],
    }
    seen = ok("inspect", "small.crest")
    assert seen["metadata"] == {
        "crest_ext": __version__,
        "data": "digits",
        "error": f"{found['error']:.6f}",
        "model": "lenet_digits",
        "seed": "1",
    }
    ip1 = next(t for t in seen["tensors"] if t["name"] == "ip1.weight")
    weight = load_file(folder / "small.crest")["ip1.weight"]
    assert (ip1["shape"], ip1["dtype"]) == ([500, 200], "float32")
    assert ip1["density"] == int(weight.count_nonzero()) / weight.numel() < 0.5
    assert ip1["bits_per_weight"] == 8 * ip1["bytes"] / weight.numel()
    assert (seen["elements"], seen["bytes"]) == (114_760, small["bytes"])


def test_inspect_shared_bytes(tmp_path: Path) -> None:
    """A tensor of zeros takes few of the bytes it shares with one of any values."""
    file = tmp_path / "shared.crest"
    save_file({"any": torch.randn(100), "zeros": torch.zeros(100)}, file)
    with safe_open(file) as opened:
        entry = opened.entry("zeros")
        assert entry == dataclasses.replace(opened.entry("any"), name="zeros", start=100)
    found = {t["name"]: t["bytes"] for t in ok("inspect", str(file))["tensors"]}
    assert entry.length - 1 <= sum(found.values()) <= entry.length
    assert found["zeros"] * 10 < found["any"]


def test_inspect_a_network() -> None:
    """What the paper says of MobileNet, layer by layer."""
    name = "mobilenet_v1(width_mult=.25, resolution=128)"
    found = ok("inspect", "--model", name)
    assert (found["input"], found["threads"], found["rounds"]) == ([1, 3, 128, 128], 1, 11)
    assert (found["multiply_adds"], found["parameters"]) == (13_570_048, 470_072)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers)[:3] == ["same", "stem.0", "stem.1"] and list(layers)[-1] == "fc"
    assert sum(layer["parameters"] for layer in layers.values()) == found["parameters"]
    assert sum(layer["bytes"] for layer in layers.values()) == found["bytes"] == 4 * (470_072 + 5_472) + 8 * 27
    conv = layers["block2.dw.0"]
    assert (conv["shape"], conv["multiply_adds"], conv["parameters"]) == ([1, 16, 32, 32], 9 * 16 * 32**2, 9 * 16)
    assert (layers["stem.1"]["multiply_adds"], layers["stem.1"]["bytes"]) == (None, 4 * 8 * 4 + 8)
    assert min(found["seconds"], *(layer["seconds"] for layer in layers.values())) > 0
    text = printed(report.NetworkReport(**{**found, "layers": tuple(LayerCost(**v) for v in layers.values())}))
    assert "13,570,048" in text and f"{conv['seconds'] * 1e3:.3f}" in text
    assert "1 x 3 x 128 x 128, 1 thread(s), median of 11 runs" in text
    assert ok("inspect", "--model", name, "--input", "3x32x32", "--rows", 2)["input"] == [2, 3, 32, 32]


def test_inspect_the_users_own_network(folder: Path) -> None:
    found = ok("inspect", "--model", "own:net", "--data", "own:loaders", "--rows", 5, "--threads", 1)
    assert [(layer["name"], layer["multiply_adds"]) for layer in found["layers"]] == [
        ("0", None),
        ("1", 5 * 6 * 8),
        ("2", None),
        ("3", 5 * 8 * 2),
    ]
    assert found["input"] == [5, 6]
    assert ok("inspect", "--model", "own:net", "--input", "6")["input"] == [1, 6]
    for args, message in [
        ((), "inspect: must be given a file or --model, got neither"),
        (("x.crest", "--model", "lenet_5"), "inspect: must be given a file or --model, got both"),
        (("--model", "own:net"), "--input: must be given, or --data: the model has no input_shape"),
        (("--model", "own:net", "--input", "3xy"), "--input: must be sizes as in 3x224x224, got 3xy"),
        (
            ("--model", "own:net", "--data", "own:loaders", "--input", "6"),
            "--input: must be left out with --data, got 6",
        ),
    ]:
        assert fails("inspect", *args) == message


def test_arguments_of_a_named_network(folder: Path) -> None:
    for model in ("lenet_5(3)", "alexnet(classes=x)", "alexnet(**{})", "alexnet(", "os.system(classes=3)"):
        message = f"--model: must be as in mobilenet_v1(width_mult=0.5, small=True), got {model}"
        assert fails("inspect", "--model", model) == message
    assert fails("inspect", "--model", "resnet20(width=3)").endswith("got an unexpected keyword argument 'width'")
    assert fails("inspect", "--model", "system(width=3)").startswith("create_model: name must be one of ")


def test_bench(folder: Path) -> None:
    """Each layer of the network is measured or said to be too full; a batch is as long as asked for."""
    ok("compress", "--recipe", "r.yaml", "--out", "small.crest")
    found = ok("bench", "small.crest", "--rows", 600, "--threads", 1)
    test = len(data.load("digits").test[0])
    assert (found["rows"], found["threads"]) == (test, 1)  # all that there are
    rows = {layer["name"]: layer["rows"] for layer in found["layers"]}
    pools = {"max_pool2d_0": 16 * test, "max_pool2d_1": 4 * test}
    assert rows == {"conv1": 64 * test, "conv2": 16 * test, "ip1": test, "ip2": test} | pools  # positions of outputs
    *_, first, last = found["layers"]
    assert 0 < first["density"] < 0.7 and min(first["dense"], first["sparse"]) > 0
    assert (last["kernel"], last["density"], last["reason"]) == ("dense", 1.0, "keeps too many weights")
    assert ok("bench", "small.crest", "--rows", 5)["rows"] == 5
    layers = tuple(PackedLayer(**layer) for layer in found.pop("layers"))
    text = printed(report.BenchReport(**found, layers=layers))
    assert f"{first['sparse'] * 1e3:.3f}" in text and "keeps too many weights" in text


def test_bench_a_network_without_a_file(folder: Path) -> None:
    found = ok("bench", "--model", "lenet_300_100", "--rows", 3, "--threads", 1)
    assert (found["file"], found["rows"], [layer["name"] for layer in found["layers"]]) == (
        "lenet_300_100",
        3,
        ["ip1", "ip2", "ip3"],
    )
    assert ok("bench", "--model", "own:net", "--input", "6", "--rows", 2)["rows"] == 2
    assert ok("bench", "--model", "own:net", "--data", "own:loaders", "--rows", 5)["rows"] == 5
    for args, message in (
        ((), "bench: must be given a file or --model, got neither"),
        (("--model", "own:net"), "--input: must be given, or --data: the model has no input_shape"),
        (("--model", "own:net", "--input", "6xa"), "--input: must be sizes as in 3x224x224, got 6xa"),
    ):
        assert fails("bench", *args) == message


def test_tables_for_people(folder: Path) -> None:
    result = crest("train", "--recipe", "r.yaml", "--out", "dense.crest")
    assert result.exit_code == 0
    assert "test error" in result.stdout
    assert f"dense.crest: {(folder / 'dense.crest').stat().st_size:,} bytes" in result.stdout
    for command in ("eval", "bench", "inspect"):
        result = crest(command, "dense.crest")
        assert result.exit_code == 0
        assert "dense.crest" in result.stdout


def test_the_users_own_network_and_data(folder: Path) -> None:
    own = ("--model", "own:net", "--data", "own:loaders")
    small = ok("compress", *own, "--recipe", "own.yaml", "--out", "own.crest")
    assert small["phases"][1]["kept"] < small["phases"][1]["total"] == 74
    assert ok("eval", "own.crest", *own)["error"] == small["phases"][1]["error"]
    assert "model" not in ok("inspect", "own.crest")["metadata"]  # A file must not say what to import.
    assert fails("eval", "own.crest") == "--model: must be given: neither recipe nor file names a model"


def test_errors_are_one_line(folder: Path) -> None:
    out = ("--out", "x.crest")
    assert fails("eval", "none.crest") == "none.crest: file must exist and be readable: No such file or directory"
    (folder / "x.zip").write_bytes(b"PK\3\4")
    assert "header: a .crest file must start with" in fails("inspect", "x.zip")
    assert fails("train", "--recipe", "none", *out).startswith("recipe: must be one of ")
    assert fails("train", "--recipe", "r.yaml", "--out", "none/x.crest") == "--out: folder must exist, got none"
    for model, message in [
        ("nowhere:net", "--model: module must exist, got nowhere:net: No module named 'nowhere'"),
        ("own:nothing", "--model: own must have a function 'nothing'"),
        ("own:number", "--model: own:number must return an nn.Module, got int"),
        ("resnet", f"create_model: name must be one of {', '.join(MODELS)}, got 'resnet'"),
    ]:
        assert fails("train", "--recipe", "r.yaml", "--model", model, *out) == message
    data = ("--data", "own:number")
    message = "--data: own:number must return (train, test) loaders, got int"
    assert fails("train", "--recipe", "r.yaml", *data, *out) == message
    (folder / "mnist.yaml").write_text(RECIPE.replace("digits", "mnist").replace("lenet_mnist", "lenet_5"))
    assert fails("train", "--recipe", "mnist.yaml", "--data", folder, *out).startswith("data: MNIST must be in ")
    (folder / "dense.yaml").write_text(RECIPE.rpartition("\n  -")[0])
    message = "--recipe: dense.yaml must have a surgery, quantize or low_rank"
    assert fails("compress", "--recipe", "dense.yaml", *out) == message
    assert not (folder / "x.crest").exists()


def test_a_failing_surgery_leaves_the_old_file(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "x.crest")
    (folder / "bad.yaml").write_text(RECIPE.replace("ip1: 0.5", "ip1: 99"))
    assert "layer 'ip1' must keep a weight" in fails("compress", "--recipe", "bad.yaml", "--out", "x.crest")
    assert list(load_file(folder / "x.crest")) == ["x"]


def test_wrong_usage_is_2() -> None:
    for args in (["train"], ["nothing"], ["eval"], ["train", "--seed", "x"]):
        assert crest(*args).exit_code == 2


def test_doctor() -> None:
    found = ok("doctor")
    assert found["versions"]["crest_ext"] == __version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["isas"] == _C.available_isas()
    assert found["active_isa"] == _C.active_isa()
    assert found["checks"] == dict.fromkeys(_C.available_isas(), True)
    assert "equals torch" in crest("doctor").stdout


def test_doctor_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crest_ext.ops.apply_mask", lambda weight, _: weight)
    result = crest("doctor", "--json")
    assert result.exit_code == 1
    assert not any(json.loads(result.stdout)["checks"].values())


def test_demo(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The whole demo on a short recipe; its numbers are consistent."""
    recipe = train.recipe.parse_recipe(RECIPE, "short")
    monkeypatch.setattr(train, "load_recipe", lambda _: recipe)
    found = ok("demo")
    dense, small = found["dense"], found["compressed"]
    assert dense["parameters"] > small["parameters"]
    assert dense["crest"] > small["crest"]
    assert abs(dense["torch_save"] - small["torch_save"]) < 1000  # zeros are not smaller there
    assert small["crest"] < min(small[name] for name in ("torch_save", "safetensors", "safetensors_gzip"))
    assert 0 <= dense["error"] <= 1
    assert min(found["seconds"], *(side[name] for side in (dense, small) for name in ("latency", "batch_latency"))) > 0
    sides = [report.Side(**found[name]) for name in ("dense", "compressed")]
    text = printed(report.DemoReport(*sides, found["seconds"], found["threads"]))
    assert f"{small['crest']:,}" in text
    assert "latency of one digit" in text
    assert "latency of 64 digits" in text
    assert found["threads"] == 1


def test_interleaved_takes_turns() -> None:
    calls: list[str] = []
    medians = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], 10)
    assert calls == ["a", "b"] * 11
    assert min(medians) > 0


def test_without_the_extra_there_is_one_line() -> None:
    program = "import sys; sys.modules['typer'] = None; from crest_ext.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == 'crest: the command line needs typer: pip install "crest_ext[cli]"\n'
