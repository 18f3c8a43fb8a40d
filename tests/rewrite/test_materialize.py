from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crest_ext import Surgery, SurgeryConfig, materialize
from crest_ext.nn import Masked, MaskedLinear, mask_


def pruned() -> nn.Sequential:
    """Convolution, nested Sequential, a layer used twice, one without bias; about half of it dropped."""
    shared = nn.Linear(8, 8)
    head = nn.Sequential(
        nn.Linear(100, 8), nn.ReLU(), shared, nn.Sequential(nn.ReLU(), shared), nn.Linear(8, 3, bias=False)
    )
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), head)
    surgery = Surgery(model, SurgeryConfig(0.0))
    surgery.step()
    surgery.finish()
    return model.eval()


@pytest.fixture
def model() -> nn.Sequential:
    return pruned()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 1, 10, 10)


def test_is_plain_and_has_the_zeros(model: nn.Sequential, x: Tensor) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = materialize(model)
    torch.testing.assert_close(plain(x), model(x))
    assert not any(isinstance(m, Masked) for m in plain.modules())
    assert [type(m) for m in plain.modules()] == [getattr(m, "plain", type(m)) for m in model.modules()]
    assert plain.state_dict().keys() == {k for k in before if "mask" not in k}
    names = [name for name in before if name.endswith("mask")]
    assert len(names) == 9  # of the shared layer twice
    for name in names:
        parameter = name.replace("bias_mask", "bias").replace("mask", "weight")
        values = plain.state_dict()[parameter]
        assert torch.equal(values != 0, before[name])
        assert torch.equal(values[before[name]], before[parameter][before[name]])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model is not changed
    assert not any(p.data_ptr() == q.data_ptr() for p, q in zip(plain.parameters(), model.parameters(), strict=True))


def test_keeps_the_memory_format() -> None:
    conv = mask_(nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last))
    conv.mask[2] = False
    plain = materialize(conv)
    assert plain.weight.stride() == conv.weight.stride() == (36, 1, 12, 4)
    x = torch.randn(2, 4, 5, 5)
    assert plain(x).stride() == conv(x).stride()
    torch.testing.assert_close(plain(x), conv(x))


def test_the_class_is_exact_and_nothing_is_left_over(model: nn.Sequential) -> None:
    plain = materialize(model)
    assert type(plain[0]) is nn.Conv2d
    assert type(plain[4][0]) is nn.Linear
    assert vars(plain[4][0]).keys() == vars(nn.Linear(1, 1)).keys()
    assert plain[0]._buffers == {}
    assert repr(plain) == repr(model).replace("Masked", "")


def test_keeps_shared_modules_hooks_and_frozen_parameters(model: nn.Sequential, x: Tensor) -> None:
    model[0].weight.requires_grad_(False)
    model[4][0].register_forward_hook(lambda *call: 2 * call[2])
    plain = materialize(model)
    assert plain[4][2] is plain[4][3][1]
    assert not plain[0].weight.requires_grad
    assert plain[4][0].weight.requires_grad
    torch.testing.assert_close(plain(x), model(x))


def test_tied_parameters_part(x: Tensor) -> None:
    """Only one of the two is masked: sharing on would prune the other, or not the one."""
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    model[1].weight = model[0].weight
    Surgery(model, SurgeryConfig({"1": 0.0})).step()
    plain = materialize(model)
    indices = torch.arange(6)
    torch.testing.assert_close(plain(indices), model(indices))
    assert plain[0].weight.all()
    assert not plain[1].weight.all()


def test_root_module() -> None:
    layer = MaskedLinear(3, 2)
    layer.mask[0] = False
    plain = materialize(layer)
    assert type(plain) is nn.Linear
    assert not plain.weight[0].any()
    assert type(layer) is MaskedLinear


def test_drops_what_is_not_finite() -> None:
    layer = MaskedLinear(2, 1)
    layer.weight.data.copy_(torch.tensor([[float("nan"), 1.0]]))
    layer.mask.copy_(torch.tensor([[False, True]]))
    assert materialize(layer).weight.tolist() == [[0.0, 1.0]]


def test_copies_and_pickles(model: nn.Sequential, x: Tensor) -> None:
    plain = materialize(model)
    assert torch.equal(copy.deepcopy(plain)(x), plain(x))
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))


def test_compiles_whole(model: nn.Sequential, x: Tensor) -> None:
    plain = materialize(model)
    torch.testing.assert_close(torch.compile(plain, fullgraph=True, backend="aot_eager")(x), model(x))


@pytest.mark.parametrize("plain", [True, False], ids=["materialized", "masked"])
def test_exports_with_dynamic_batch(model: nn.Sequential, x: Tensor, plain: bool) -> None:
    module = materialize(model) if plain else model
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    ours = [node for node in program.graph.nodes if "crest" in str(node.target)]
    assert bool(ours) is not plain
    for n in (1, 3, 8):
        batch = torch.randn(n, 1, 10, 10)
        torch.testing.assert_close(program.module()(batch), model(batch))


@pytest.mark.filterwarnings("ignore::FutureWarning:torch.*", "ignore::FutureWarning:copyreg")
def test_exports_to_onnx(model: nn.Sequential, x: Tensor, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(
        materialize(model), (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False
    )
    program.save(path)
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert not [node for node in graph.graph.node if node.domain not in ("", "ai.onnx")]
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        batch = torch.randn(n, 1, 10, 10)
        (out,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(batch), rtol=1e-4, atol=1e-5)
