"""The README's examples run, and do what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from crest_ext import container, data, models, nn, train

README = Path(__file__).parents[1] / "README.md"


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    example = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    published = models.create_model("mobilenet_v1", width_mult=0.25, num_classes=1001, folded=True).state_dict()
    save_file(published | {"fc.weight": published["fc.weight"][..., None, None]}, "mobilenet_v1_0.25_128.safetensors")
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exec(compile(example, str(README), "exec"), names)
    finally:
        torch.set_num_threads(threads)
    assert "ip1" in capsys.readouterr().out
    assert torch.equal(names["mobilenet"].stem.weight, published["stem.weight"])
    assert len(names["errors"]) == names["cache"].batches_per_pass == 2
    assert all(p.isfinite().all() for p in names["student"].parameters())
    assert any(isinstance(module, nn.DepthwiseConv2d) for module in names["separated"].modules())
    assert str(names["thin_again"]) == str(names["thin"])
    assert_close(names["thin_again"].state_dict(), names["thin"].state_dict(), rtol=0, atol=0)
    for file in ("digits.crest", "few.crest"):
        model = models.create_model("lenet_digits")
        container.load_model(model, file)
        kept, total = train.count(model)
        assert 10 * kept < total
        assert train.evaluate(model, data.Loader(data.load("digits").test, 500)) < 0.05
    assert 2 * Path("few.crest").stat().st_size < Path("digits.crest").stat().st_size
