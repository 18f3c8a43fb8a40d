"""The README's examples run, and do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from crest_ext import container, data, models, train

README = Path(__file__).parents[1] / "README.md"


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    example = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exec(compile(example, str(README), "exec"), {})
    finally:
        torch.set_num_threads(threads)
    assert "ip1" in capsys.readouterr().out
    for file in ("digits.crest", "few.crest"):
        model = models.create_model("lenet_digits")
        container.load_model(model, file)
        kept, total = train.count(model)
        assert 10 * kept < total
        assert train.evaluate(model, data.Loader(data.load("digits").test, 500)) < 0.05
    assert 2 * Path("few.crest").stat().st_size < Path("digits.crest").stat().st_size
