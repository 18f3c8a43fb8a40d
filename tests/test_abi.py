"""The extension uses torch through its stable C interface only, so that one wheel serves every later torch."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch

from crest_ext import _C

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")


def symbols(*flags: str) -> list[str]:
    out = subprocess.run(["nm", "-D", *flags, _C.__file__], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1].split("@")[0] for line in out.splitlines()]


def test_torch_symbols_are_the_stable_ones() -> None:
    undefined = symbols("--undefined-only")
    cxx = subprocess.run(["c++filt"], input="\n".join(undefined), capture_output=True, text=True, check=True).stdout
    unstable = [s for s in cxx.splitlines() if s.startswith(("at::", "c10::", "torch::", "caffe2::"))]
    assert unstable == []
    assert [s for s in undefined if s.startswith(("aoti_torch_", "torch_"))] != []


def test_exports_only_the_module() -> None:
    """Hidden visibility: nothing of ours can be taken for another extension's, or the other way round."""
    assert [s for s in symbols("--defined-only") if "crest" in s] == []
    assert "PyInit__C" in symbols("--defined-only")


def test_ops_are_registered_for_every_device_of_the_build() -> None:
    ops = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("crest::")]
    assert len(ops) >= 3
    for op in ops:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CPU")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA") == _C.cuda
