"""Whole models: plain, masked and with tied weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext.container import load_file, load_model, save_model


class Masked(nn.Linear):
    """What crest_ext.nn.MaskedLinear keeps: weight, bias, and bool buffers beside them."""

    def __init__(self, k: int, m: int) -> None:
        super().__init__(k, m)
        self.register_buffer("mask", torch.rand(m, k) < 0.3)
        self.register_buffer("bias_mask", torch.rand(m) < 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(
            x, torch.where(self.mask, self.weight, 0), torch.where(self.bias_mask, self.bias, 0)
        )


def masked_network() -> nn.Module:
    return nn.Sequential(Masked(20, 30), nn.BatchNorm1d(30), nn.ReLU(), Masked(30, 5)).eval()


def plain_network() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 5)).eval()


def test_masked_into_plain_and_masked(tmp_path: Path) -> None:
    model, x = masked_network(), torch.randn(7, 20)
    with torch.no_grad():
        model[0].weight[0] = 0.0  # Kept or not, these weights are zero.
        model[0].bias.zero_()
    save_model(model, tmp_path / "x.crest", {"a": "b"})
    assert not [name for name in load_file(tmp_path / "x.crest") if "mask" in name]

    plain, masked = plain_network(), masked_network()
    assert load_model(plain, tmp_path / "x.crest") == ([], [])
    torch.testing.assert_close(plain(x), model(x))
    assert load_model(masked, tmp_path / "x.crest") == ([], [])
    torch.testing.assert_close(masked(x), model(x))
    for name, value in model.named_buffers():
        assert torch.equal(masked.get_buffer(name), value), name


def test_dropped_nan_is_gone(tmp_path: Path) -> None:
    model = Masked(3, 2)
    model.mask.fill_(False)
    model.weight.data.fill_(float("nan"))
    save_model(model, tmp_path / "x.crest")
    assert torch.equal(load_file(tmp_path / "x.crest")["weight"], torch.zeros(2, 3))


def test_smaller_than_the_dense_file(tmp_path: Path) -> None:
    model = Masked(300, 100)
    save_model(nn.Linear(300, 100), tmp_path / "dense.crest")
    save_model(model, tmp_path / "masked.crest")
    assert (tmp_path / "masked.crest").stat().st_size < 0.4 * (tmp_path / "dense.crest").stat().st_size


def test_a_buffer_that_only_looks_like_a_mask(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool))  # Not the shape of weight.
    save_model(model, tmp_path / "x.crest")
    assert torch.equal(load_file(tmp_path / "x.crest")["mask"], model.mask)
    assert load_model(model, tmp_path / "x.crest") == ([], [])


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    save_model(model, tmp_path / "x.crest")
    assert sorted(load_file(tmp_path / "x.crest")) == ["0.bias", "0.weight", "1.bias"]
    assert load_model(other, tmp_path / "x.crest") == ([], [])
    assert torch.equal(other[1].weight, model[1].weight)
    with pytest.raises(ValueError, match=r"x\.crest: names must be those of the model, got missing 1\.weight$"):
        load_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), tmp_path / "x.crest")


def test_names_and_shapes_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.crest"
    save_model(nn.Linear(3, 2), path)
    model = nn.Linear(3, 2, bias=False)
    with pytest.raises(ValueError, match=r"x\.crest: names must be those of the model, got unexpected bias$"):
        load_model(model, path)
    assert load_model(model, path, strict=False) == ([], ["bias"])
    assert torch.equal(model.weight, load_file(path)["weight"])
    with pytest.raises(ValueError, match=r"x\.crest: tensor 'weight' must have the shape .* \(2, 4\), got \(2, 3\)$"):
        load_model(nn.Linear(4, 2), path, strict=False)


def test_state_that_is_not_a_tensor(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "text"

    with pytest.raises(ValueError, match=r"^save_file: tensor '_extra_state' must be a Tensor, got str$"):
        save_model(Extra(2, 2), tmp_path / "x.crest")


class Halved(nn.Module):
    """Of its second version: the weights of states before that were twice as large."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *args: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"] / 2
        super()._load_from_state_dict(state, prefix, metadata, *args)


def test_modules_with_versions(tmp_path: Path) -> None:
    model, other = nn.Sequential(Halved()), nn.Sequential(Halved())
    save_model(model, tmp_path / "f.crest")
    load_model(other, tmp_path / "f.crest")
    assert torch.equal(other[0].weight, model[0].weight)


class Unversioned(nn.Linear):
    """Whose state is a dict, and no more."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return dict(super().state_dict(*args, **options))


def test_states_without_versions(tmp_path: Path) -> None:
    model, other = Unversioned(3, 2), Unversioned(3, 2)
    save_model(model, tmp_path / "f.crest")
    load_model(other, tmp_path / "f.crest")
    assert torch.equal(other.weight, model.weight)
