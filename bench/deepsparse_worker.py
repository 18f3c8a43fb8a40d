"""DeepSparse, which needs an environment of its own: runs a model when it is told to, and says how long that took.

    python bench/deepsparse_worker.py MODEL.onnx X.npy Y.npy THREADS

Writes the model's result for X to Y and a line when it is ready; then, for each line it reads, the seconds of a run.
`peers.deepsparse` starts it by the Python that $CREST_DEEPSPARSE names.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnx
from deepsparse import Engine


def main(model: str, x: str, y: str, threads: str) -> None:
    whole = onnx.load(model)
    whole.ir_version = 8  # the file's own is newer than it knows, and what it says is not
    onnx.save(whole, model)
    array = np.load(x)
    engine = Engine(model, batch_size=len(array), num_cores=int(threads))
    np.save(y, engine.run([array])[0])
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        engine.run([array])
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
