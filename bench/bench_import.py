"""What `import crest_ext` adds to `import torch`, each in a new process."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

from timing import compare


def bench_import(benchmark: Any) -> None:
    def run(*modules: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], check=True)

    torch = "import torch alone"
    compare(
        benchmark,
        partial(run, "torch", "crest_ext"),
        {torch: partial(run, "torch")},
        group="import",
        case="import torch, crest_ext",
        rounds=5,
    )
    if benchmark.enabled:
        added = benchmark.stats.stats.median - benchmark.extra_info["others"][torch]
        benchmark.extra_info["crest_ext adds, s"] = added
