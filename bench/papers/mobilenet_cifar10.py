"""MobileNets: accuracy over width on CIFAR-10, every width trained alike.

    PYTHONPATH=bench CREST_DATA=folder python bench/papers/mobilenet_cifar10.py

The library's MobileNet for 32x32 images, from random weights, at each width multiplier alpha of the paper. Every epoch
of the four together is about 20 minutes on an idle core that multiplies bfloat16. A finished width is kept in --work,
with its file, and not run again; one cut short goes on at its last epoch. Latencies are measured anew by each call.
Writes results/mobilenet_cifar10.json after each width, of which bench/papers/picture.py draws
docs/mobilenet_cifar10.svg.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cifar10
import torch
from torch import Tensor, nn

import crest_ext
from bench_mobilenet import by_torch
from crest_ext import data, train
from crest_ext.container import load_model, save_file, save_model
from crest_ext.models import create_model
from crest_ext.models.cost import multiply_adds
from peers import in_torch
from timing import interleaved

RESULTS = Path(__file__).parent / "results"
WIDTHS = (0.25, 0.5, 0.75, 1.0)
PAPER = {0.25: (50.6, 41), 0.5: (63.7, 149), 0.75: (68.4, 325), 1.0: (70.6, 569)}  # ImageNet %, million multiply-adds
EPOCHS, RATE, DECAY, SEED = 4, 0.1, 5e-4, 0


@dataclass(frozen=True)
class Run:
    """A width at the end of its training; errors are fractions."""

    width: float
    error: float
    half_error: float  # with its values rounded to bfloat16
    parameters: int
    work: int  # multiply-adds of an image
    size: int  # bytes of the file
    half_size: int  # of that in bfloat16
    minutes: float


def create(width: float) -> nn.Module:
    return create_model("mobilenet_v1", width_mult=width, num_classes=10, small=True)


def run(images: data.Dataset, width: float, epochs: int, work: Path) -> tuple[Run, Path]:
    """And the file."""
    name = f"mobilenet_cifar10_{width}_{epochs}"
    done, file, half_file, unfinished = (work / f"{name}{end}" for end in (".json", ".crest", ".bfloat16.crest", ".pt"))
    if done.exists():
        return Run(**json.loads(done.read_text())), file
    torch.manual_seed(SEED)
    network = create(width).to(memory_format=torch.channels_last)
    seconds = cifar10.train_on(network, images.train, epochs, RATE, DECAY, SEED, unfinished)
    network.eval().to(memory_format=torch.contiguous_format)
    test = cifar10.test_images(images)
    work_of = sum(multiply_adds(network, next(iter(test))[0][:1]).values())
    parameters, error = train.count(network)[1], train.evaluate(network, test)
    save_model(network, file)
    rounded = {k: v.bfloat16() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file(rounded, half_file)
    load_model(network, half_file)
    half_error, (size, half_size) = train.evaluate(network, test), (f.stat().st_size for f in (file, half_file))
    result = Run(width, error, half_error, parameters, work_of, size, half_size, seconds / 60)
    print(result, flush=True)
    done.write_text(json.dumps(asdict(result)))
    unfinished.unlink()
    return result, file


def milliseconds(file: Path, width: float, x: Tensor) -> tuple[float, float]:
    """Of x by torch and packed, interleaved."""
    network = create(width).eval().requires_grad_(False)
    load_model(network, file)
    plain, packed = by_torch(network), crest_ext.pack(network, x)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-3, atol=1e-3)
    seconds = interleaved({"torch": in_torch(plain, x), "packed": in_torch(packed, x)}, 101, 5)
    return 1e3 * seconds["torch"], 1e3 * seconds["packed"]


def section(runs: list[Run], times: list[tuple[float, float]], epochs: int) -> dict[str, object]:
    columns = ["alpha", "test error %", "parameters", "million multiply-adds", "bytes", "bytes, bfloat16"]
    columns += ["error %, bfloat16", "torch ms", "packed ms", "faster", "minutes", "paper, ImageNet: error %, million"]
    rows = []
    for r, (eager, packed) in zip(runs, times, strict=True):
        cells = [f"{r.width:g}", f"{100 * r.error:.2f}", f"{r.parameters:,}", f"{r.work / 1e6:.1f}", f"{r.size:,}"]
        cells += [f"{r.half_size:,}", f"{100 * r.half_error:.2f}", f"{eager:.2f}", f"{packed:.2f}"]
        accuracy, work = PAPER[r.width]
        rows.append([*cells, f"{eager / packed:.2f}x", f"{r.minutes:.0f}", f"{100 - accuracy:.1f}, {work}"])
    notes = [
        f"{epochs} epochs each in batches of {cifar10.BATCH}, which is few: longer training would give other errors.",
        "All see the same images in the same order. One seed, at the end of training; the widths finished so far.",
        f"SGD from {RATE} along a cosine to 0, weight decay {DECAY} but none on depthwise filters; crops and mirrored",
        "images; bfloat16. No setting was chosen on test images, and none was tried beside these.",
        "Files hold float32, or the same rounded to bfloat16. Milliseconds: one float32 image, one thread, torch eager",
        "beside crest_ext.pack, interleaved. Minutes of one core, of the training alone.",
    ]
    title = "MobileNets: width on CIFAR-10"
    command = f"PYTHONPATH=bench python bench/papers/mobilenet_cifar10.py --epochs {epochs}"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


def main() -> None:
    parser = cifar10.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each width")
    parser.add_argument("--widths", type=float, nargs="+", choices=WIDTHS, default=list(WIDTHS))
    args = parser.parse_args()
    images = cifar10.start(args)
    x = cifar10.standardized(images.test.x[:1]).contiguous()
    runs, times = [], []
    for width in args.widths:
        result, file = run(images, width, args.epochs, args.work)
        runs.append(result)
        times.append(milliseconds(file, width, x))
        RESULTS.mkdir(exist_ok=True)
        table = [section(runs, times, args.epochs)]
        (RESULTS / "mobilenet_cifar10.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
