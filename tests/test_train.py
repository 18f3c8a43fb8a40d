from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import Quantize, QuantizeConfig, Surgery, SurgeryConfig, train
from crest_ext.container import load_file, save_model
from crest_ext.data import Dataset, Loader, Split
from crest_ext.nn import Masked
from crest_ext.train.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """
phases:
  - name: dense
    iterations: 30
    lr: {kind: cosine, start: 0.1}
    batch_size: 32
    bias_lr: 2
  - name: first
    iterations: 10
    lr: {kind: inv, start: 0.05, gamma: 1e-4, power: 0.75}
    weight_decay: 1e-4
    surgery: {c_rate: {"0": 0.5}, iter_stop: 6}
  - name: second
    iterations: 10
    lr: 0.05
    surgery: {c_rate: {"0": 0.5, "2": 0.2}, iter_stop: 6, mask_bias: false}
  - name: fine-tune
    iterations: 6
    lr: {kind: step, start: 0.05, size: 3}
"""


def blobs(n: int) -> Split:
    """Three classes around three points."""
    y = torch.arange(n) % 3
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    return Split(centres[y] + 0.3 * torch.randn(n, 4), y)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def data() -> Dataset:
    return Dataset(blobs(300), blobs(99))


def test_run_learns_and_prunes(data: Dataset) -> None:
    model, started = network(), []
    recipe = parse_recipe(RECIPE, "r")
    results = train.run(recipe, model, data, start=lambda phase: started.append(phase.name))  # type: ignore[func-returns-value]
    assert started == [r.name for r in results] == ["dense", "first", "second", "fine-tune"]
    assert [r.total for r in results] == [131] * 4
    assert results[0].kept == 131
    assert results[0].kept > results[1].kept > results[2].kept == results[3].kept == train.count(model)[0]
    assert results[3].error <= 0.1
    assert all(r.seconds > 0 for r in results)
    first, second = model[0], model[2]
    assert isinstance(first, Masked)
    assert isinstance(second, Masked)
    assert not first.weight[~first.mask].any()  # what was dropped is 0 itself at the end of a phase
    assert second.bias_mask is None


def test_same_seed_same_bits_and_another_seed_others(data: Dataset) -> None:
    recipe, states = parse_recipe(RECIPE, "r"), []
    for seed in (0, 0, 1):
        model = network()
        train.run(recipe, model, data, seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_resume_from_a_checkpoint_gives_the_same_bits(data: Dataset, tmp_path: Path, interrupted_after: int) -> None:
    recipe, checkpoint = parse_recipe(RECIPE, "r"), tmp_path / "x.crest"
    whole = network()
    train.run(recipe, whole, data)

    class Interrupt(Exception):  # noqa: N818
        pass

    names = []

    def stop(result: train.PhaseResult) -> None:
        names.append(result.name)
        if len(names) == interrupted_after:
            raise Interrupt

    with pytest.raises(Interrupt):
        train.run(recipe, network(), data, checkpoint=checkpoint, done=stop)
    resumed = network()
    results = train.run(recipe, resumed, data, checkpoint=checkpoint)
    assert len(results) == 4 - interrupted_after
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    with pytest.raises(
        ValueError, match=r"x\.crest: checkpoint must be of this recipe and seed: remove it to start over$"
    ):
        train.run(recipe, network(), data, checkpoint=checkpoint, seed=1)


def test_restore_masks_what_is_dropped(data: Dataset, tmp_path: Path) -> None:
    model = network()
    train.run(parse_recipe(RECIPE, "r"), model, data, last=2, checkpoint=tmp_path / "x.crest")
    other = network()
    train.restore(other, tmp_path / "x.crest")
    assert torch.equal(other[0].mask, model[0].mask)  # type: ignore[union-attr, arg-type]
    assert not isinstance(other[2], Masked)
    assert train.count(other) == train.count(model)
    assert sum(int(v.count_nonzero()) for v in load_file(tmp_path / "x.crest").values()) == train.count(model)[0]


def test_convolutions_are_trained_in_channels_last(data: Dataset) -> None:
    model = nn.Sequential(nn.Unflatten(1, (2, 2, 1)), nn.Conv2d(2, 4, (2, 1)), nn.Flatten(), nn.Linear(4, 3))
    weight, formats = model[1].weight, []
    model[1].register_forward_pre_hook(lambda m, _: formats.append(m.weight.stride()))
    results = train.run(parse_recipe(RECIPE.replace('"0"', '"1"').replace('"2"', '"3"'), "r"), model, data)
    assert model[1].weight is weight
    assert set(formats) == {(4, 1, 2, 2)}
    assert weight.is_contiguous()  # again: safetensors refuses to save others
    assert model[1].mask.is_contiguous()
    assert results[3].error <= 0.1


def test_frozen_layers_stay(data: Dataset) -> None:
    model = network()
    before = model[0].weight.clone()
    text = "phases: [{name: a, iterations: 5, lr: 0.1, freeze: ['0*']}, {name: b, iterations: 5, lr: 0.1}]"
    recipe = parse_recipe(text, "r")
    train.run(recipe, model, data, last=1)
    assert torch.equal(model[0].weight, before)
    assert all(p.requires_grad for p in model.parameters())
    train.run(recipe, model, data, first=1)
    assert not torch.equal(model[0].weight, before)
    recipe = parse_recipe(text.replace("0*", "conv1"), "r")
    with pytest.raises(ValueError, match=r"^recipe: phase a: freeze must name a layer, got 'conv1'$"):
        train.run(recipe, model, data)


@pytest.mark.parametrize(
    "method", ["surgery: {c_rate: 1, ramp: 2}", "quantize: {lam: 0.01}", "quantize: {lam: {'*': 0.01}}"]
)
def test_methods_leave_frozen_layers_alone(data: Dataset, method: str) -> None:
    model = network()
    before = model[0].weight.clone()
    text = f"phases: [{{name: a, iterations: 5, lr: 0.1, freeze: ['0*'], {method}}}]"
    train.run(parse_recipe(text, "r"), model, data)
    assert torch.equal(model[0].weight, before)
    assert type(model[0]) is nn.Linear
    assert len(model[2].weight.unique()) < model[2].weight.numel()
    with pytest.raises(ValueError, match=r"^recipe: phase a: freeze must leave a layer to (Surgery|Quantize)$"):
        train.run(parse_recipe(text.replace("0*", "*"), "r"), model, data)


def test_fit_is_torch_sgd(data: Dataset) -> None:
    ours, theirs = network(), network()
    train.fit(ours, Loader(data.train, 50), 7, train.Cosine(0.1), momentum=0.8, weight_decay=0.01, bias_lr=2)
    weights, biases = [theirs[0].weight, theirs[2].weight], [theirs[0].bias, theirs[2].bias]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": biases}], 0.1, 0.8, weight_decay=0.01)
    batches = [*Loader(data.train, 50), *Loader(data.train, 50)]
    for i in range(7):
        for group, scale in zip(optimizer.param_groups, (1, 2), strict=True):
            group["lr"] = scale * train.Cosine(0.1).at(i, 7)
        optimizer.zero_grad()
        F.cross_entropy(theirs(batches[i][0]), batches[i][1]).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_fit_takes_any_loss_and_loader_and_reports(data: Dataset) -> None:
    model, seen = nn.Linear(4, 1), []

    def squares(out: Tensor, y: Tensor) -> Tensor:
        return (out.squeeze(1) - y).square().mean()

    train.fit(model, [data.train], 250, 0.05, loss=squares, progress=seen.append)
    assert [p.iteration for p in seen] == list(range(2, 251, 2))
    assert seen[-1].iterations == 250
    assert seen[-1].loss < seen[0].loss / 4


def test_fit_with_surgery_keeps_dropped_weights_at_zero(data: Dataset) -> None:
    model = network()
    surgery = Surgery(model, SurgeryConfig(c_rate=0.5, iter_stop=10))
    train.fit(model, Loader(data.train, 50, shuffle=True), 20, 0.05, weight_decay=1e-3, surgery=surgery)
    assert surgery.iteration == 20
    assert surgery.finish().kept == train.count(model)[0] < 131


def test_fit_with_quantize_gives_few_values(data: Dataset) -> None:
    model = network()
    quantize = Quantize(model, QuantizeConfig(0.01, levels=4))
    train.fit(model, Loader(data.train, 50, shuffle=True), 20, 0.05, weight_decay=1e-3, quantize=quantize)
    assert quantize.iteration == 20
    assert all(len(p[p != 0].unique()) <= 4 for p in model.parameters())


def test_low_rank_phase_lowers_the_rank(data: Dataset) -> None:
    phase = "  - {name: low rank, iterations: 20, lr: 0.05, low_rank: {tau: 0.2, interval: 5}}\n"
    recipe = parse_recipe("phases:\n" + phase, "r")
    assert recipe.dense == 0
    model = network()
    (result,) = train.run(recipe, model, data)
    assert result.kept == result.total
    values = torch.linalg.svdvals(model[0].weight.detach())
    assert int((values > 1e-4 * values[0]).sum()) < len(values)


def test_quantize_phase_after_surgery(data: Dataset, tmp_path: Path) -> None:
    """Few values for what surgery has left, in a smaller file; resumed before it, the same bits."""
    phase = "  - {name: quantize, iterations: 10, lr: {kind: cosine, start: 0.01}, quantize: {lam: 0.01, levels: 4}}\n"
    recipe = parse_recipe(RECIPE + phase, "r")
    assert recipe.dense == 1
    assert parse_recipe("phases:\n" + phase, "r").dense == 0
    path, model, other = tmp_path / "run.crest", network(), network()
    *_, before, after = train.run(recipe, model, data, checkpoint=path)
    assert after.kept <= before.kept
    assert all(len(p[p != 0].unique()) <= 4 for p in model.parameters())
    assert len(load_file(path)["0.weight"].unique()) <= 5
    train.run(recipe, other, data, last=4)
    save_model(other, tmp_path / "before.crest")
    assert path.stat().st_size < (tmp_path / "before.crest").stat().st_size
    other = network()
    train.restore(other, tmp_path / "before.crest")
    train.run(recipe, other, data, first=4)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_empty_loader(call: str) -> None:
    with pytest.raises(ValueError, match=f"^{call}: batches must give a "):
        train.fit(network(), [], 1, 0.1) if call == "fit" else train.evaluate(network(), [])


def test_evaluate_counts_and_leaves_the_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    x = torch.eye(4)
    assert train.evaluate(model, [(x, torch.arange(4)), (x, torch.tensor([0, 1, 2, 2]))]) == 1 / 8
    assert model.training


def test_schedules() -> None:
    assert train.Constant(0.1).at(5, 10) == 0.1
    assert train.Inv(0.01, 1e-4, 0.75).at(0, 9) == 0.01
    assert train.Inv(0.01, 1e-4, 0.75).at(10000, 9) == pytest.approx(0.01 * 2**-0.75)
    assert [train.Step(1.0, 10, 0.5).at(i, 99) for i in (0, 9, 10, 20)] == [1, 1, 0.5, 0.25]
    assert [train.Cosine(1.0, 0.2).at(i, 10) for i in (0, 5, 10)] == pytest.approx([1, 0.6, 0.2])


@pytest.mark.parametrize("name", train.recipe_names())
def test_recipes_of_the_package_fit_their_models(name: str) -> None:
    from crest_ext.models import create_model

    recipe = train.load_recipe(name)
    assert recipe.model
    assert recipe.data
    assert 0 < recipe.dense < len(recipe.phases)
    model = create_model(recipe.model)
    for phase in recipe.phases:
        if phase.surgery:
            Surgery(model, phase.surgery)
        if phase.quantize:
            Quantize(model, phase.quantize)


PHASE = "phases: [{name: a, iterations: 1, lr: 0.1%s}]\n%s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PHASE % (", speed: 1", ""), "r: phase 1: key must be one of name, iterations, lr, .*, got 'speed'"),
        (PHASE % ("", "models: x"), "r: key must be one of phases, model, data, got 'models'"),
        (PHASE % (", iterations: 2", ""), "r: line 1: key must stand once, got 'iterations'"),
        (PHASE % (", batch_size: 1.5", ""), "r: phase 1: batch_size must be a whole number, got 1.5"),
        (PHASE % (", batch_size: 0", ""), "r: phase 1: batch_size must be at least 1, got 0"),
        (PHASE % (", momentum: fast", ""), "r: phase 1: momentum must be a finite number, got 'fast'"),
        (PHASE % (", weight_decay: .nan", ""), "r: phase 1: weight_decay must be a finite number, got nan"),
        (PHASE % (", bias_lr: true", ""), "r: phase 1: bias_lr must be a finite number, got True"),
        (PHASE % ("", "model: 3"), "r: model must be text, got 3"),
        (PHASE % (", surgery: {c_rate: 1, c: 2}", ""), "r: phase 1: surgery: key must be one of c_rate, .*, got 'c'"),
        (PHASE % (", surgery: {}", ""), "r: phase 1: surgery: c_rate must be given"),
        (PHASE % (", surgery: {c_rate: 1, mask_bias: 3}", ""), "r: phase 1: surgery: mask_bias must be true or false"),
        (
            PHASE % (", surgery: {c_rate: 1, high: 0}", ""),
            "r: phase 1: surgery: SurgeryConfig: high must be a number >=",
        ),
        (PHASE % (", quantize: {}", ""), "r: phase 1: quantize: lam must be given"),
        (PHASE % (", quantize: {lam: -1}", ""), "r: phase 1: quantize: QuantizeConfig: lam must be a finite number >="),
        (
            PHASE % (", surgery: {c_rate: 1}, quantize: {lam: 0.1}", ""),
            "r: phase 1: quantize must have a phase of its own, got surgery as well",
        ),
        (PHASE % (", freeze: conv1", ""), "r: phase 1: freeze must be a list of names or patterns, got 'conv1'"),
        (PHASE % (", surgery: 3", ""), "r: phase 1: surgery: must be a mapping of names to values, got 3"),
        ("phases: [{name: a, lr: 0.1}]", "r: phase 1: iterations must be given"),
        (
            "phases: [{name: a, iterations: 1, lr: fast}]",
            "r: phase 1: lr: must be a mapping of names to values, got 'fast'",
        ),
        (
            "phases: [{name: a, iterations: 1, lr: {kind: up}}]",
            "r: phase 1: lr: kind must be one of constant, inv, step, cosine, got 'up'",
        ),
        ("phases: [{name: a, iterations: 1, lr: {kind: step, start: 1}}]", "r: phase 1: lr: size must be given"),
        ("phases: []", "r: phases must be a list of at least one phase, got "),
        ("model: lenet_5", "r: phases must be a list of at least one phase, got None"),
        ("3", "r: must be a mapping of names to values, got 3"),
        ("phases: [", "r: must be YAML: "),
        ("phases: !!python/object/apply:os.getcwd []", "r: must be YAML: "),
    ],
)
def test_recipe_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_recipe(text, "r")


def test_recipe_from_a_file_and_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(textwrap.dedent(PHASE % (", weight_decay: 5e-4, momentum: 0", "")))
    assert train.load_recipe(str(path)).phases[0].weight_decay == 5e-4
    with pytest.raises(ValueError, match=r"^recipe: must be one of .*demo.* or a file, got 'none'$"):
        train.load_recipe("none")
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"own\.yaml: must be text in UTF-8$"):
        train.load_recipe(str(path))
