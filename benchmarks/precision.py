r"""Time networks in float32, bfloat16 and int8: dense against compressed, each in the same runtime.

Runtimes: torch (deployed, and compiled as well), onnxruntime, and OpenVINO with NNCF, where they are installed. The
networks of a runtime run in turn in a process of their own, since the threads of several runtimes in one process get in
each other's way; the peak memory of each network is that of another process. Weights are random unless files are given.
Run it on an idle machine.

Example:
  python -m benchmarks.precision --repeats 31
  python -m benchmarks.precision --files dense.safetensors r50.safetensors --calibrate imagenet/val --profile
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import norton_det as nd
from benchmarks.memory import peak_memory
from benchmarks.runtimes import PROFILED, RUNTIMES, prepare
from norton_det.cli.common import Parser, command
from norton_det.cli.numbers import whole
from norton_det.errors import UsageError
from norton_det.export.images import generated_images, read_images
from norton_det.export.preprocessing import example_size, preprocessing_of
from norton_det.formatting import table
from norton_det.runtime.malloc import give_back_freed_memory
from norton_det.runtime.timing import describe_machine, time_alternating
from norton_det.structure.settings import spec_from_configuration

DENSE, OURS = "dense", "compressed"
RATES = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
_WARM_UP = 5
_SIZE = 224


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, prepare the files, measure and print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--files", nargs=2, metavar=("DENSE", "FILE"), help="classifiers (default: ResNet-50 and its 0.92G, random)")
    add("--runtimes", nargs="+", choices=[*RUNTIMES], default=[*RUNTIMES], metavar="NAME", help="that are timed")
    add("--repeats", type=whole(1), default=21, metavar="N", help="timed runs of each network")
    add("--calibrate", metavar="DIR", help="folder with images for int8 (default: generated ones)")
    add("--calibrate-count", type=whole(4), default=16, metavar="N", help="how many of them")
    add("--profile", action="store_true", help="where onnxruntime's time goes, by operator")
    add("--folder", metavar="DIR", help="where the files are kept (default: a temporary one)")
    add("--json", metavar="FILE", help="write the results there as well")
    add("--child", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        what, folder = args.child
        print(json.dumps(_child(what, folder, args.repeats)))
        return
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
        _run(args, args.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _run(args, folder)


def _run(args: argparse.Namespace, folder: str) -> None:
    runtimes = [name for name in args.runtimes if all(find_spec(package) for package in RUNTIMES[name].packages)]
    for name in args.runtimes:
        if name not in runtimes:
            print(f"{name}: left out, since {' or '.join(RUNTIMES[name].packages)} is not installed", file=sys.stderr)
    if not runtimes:
        raise UsageError(f"none of {', '.join(args.runtimes)} is installed")
    networks = _networks(args)
    images = _images(args, *networks[DENSE])
    torch.save(images[0][None], f"{folder}/image.pth")
    for name, (net, spec) in networks.items():
        with torch.inference_mode():
            torch.save(net(images[0][None]), f"{folder}/{name}.outputs.pth")
        for runtime in runtimes:
            prepare(runtime, net, spec, images, f"{folder}/{name}")
    rows: list[dict[str, Any]] = []
    for runtime in runtimes:
        measured = _in_child(f"time {runtime}", folder, args.repeats)
        for row in measured:
            row["peak_mb"] = _in_child(f"memory {runtime} {row['network']} {row['precision']}", folder, 1)
        rows += measured
    print(f"machine: {describe_machine()}\nimages {tuple(images[0].shape)}, batch 1, {args.repeats} runs in turn")
    print(_table(rows))
    if args.profile and PROFILED in runtimes:
        for profile in _in_child(f"profile {PROFILED}", folder, args.repeats):
            print(f"\n{profile['network']}, {profile['precision']}: {profile['milliseconds']:.2f} ms of operators")
            print(table(("operator", "number", "ms", "fraction"), profile["rows"]))
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1))


def _networks(args: argparse.Namespace) -> dict[str, Any]:
    if args.files:
        return dict(zip((DENSE, OURS), map(nd.load, args.files), strict=True))
    torch.manual_seed(0)
    specs = {DENSE: nd.Spec("resnet50", 1000), OURS: spec_from_configuration("resnet50", 1, RATES)}
    return {name: (_with_statistics(nd.build(spec)), spec) for name, spec in specs.items()}


def _with_statistics(net: Any) -> Any:
    """Give the batch norms of random weights the statistics of their inputs, so that values keep their size."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all that is run
    with torch.no_grad():
        net.train()(torch.stack(generated_images((_SIZE, _SIZE), {})))
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


def _images(args: argparse.Namespace, net: torch.nn.Module, spec: nd.Spec) -> list[Tensor]:
    preprocessing = preprocessing_of(net, spec)
    if args.calibrate:
        return read_images(args.calibrate, args.calibrate_count, preprocessing, drawn=True)
    images = generated_images(example_size(net, spec), preprocessing)
    return [images[i % len(images)].roll(16 * i, 2) for i in range(args.calibrate_count)]


def _in_child(what: str, folder: str, repeats: int) -> Any:
    words = [sys.executable, "-m", "benchmarks.precision", "--child", what, folder, "--repeats", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{what} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _child(what: str, folder: str, repeats: int) -> Any:
    task, name, *chosen = what.split()
    images = torch.load(f"{folder}/image.pth", weights_only=True)
    runtime = RUNTIMES[name]
    if task == "memory":
        network, precision = chosen
        return peak_memory(partial(_load_and_run, runtime.loaders[precision], f"{folder}/{network}", images))
    if task == "profile":
        return [
            {"network": network, "precision": precision, **runtime.profile(f"{folder}/{network}", precision, images)}
            for network in (DENSE, OURS)
            for precision in runtime.loaders
        ]
    runs: dict[tuple[str, str], Callable[[], Any]] = {
        (network, precision): load(f"{folder}/{network}", images)
        for network in (DENSE, OURS)
        for precision, load in runtime.loaders.items()
    }
    return _timed(name, folder, runs, repeats)


def _timed(
    runtime: str, folder: str, runs: dict[tuple[str, str], Callable[[], Any]], repeats: int
) -> list[dict[str, Any]]:
    seconds = time_alternating({f"{a} {b}": run for (a, b), run in runs.items()}, repeats, warmup=_WARM_UP)
    base = seconds[f"{DENSE} float32"]
    rows = []
    for (network, precision), run in runs.items():
        times = seconds[f"{network} {precision}"]
        exact = torch.load(f"{folder}/{network}.outputs.pth", weights_only=True)
        outputs = torch.as_tensor(run()).float()
        file = RUNTIMES[runtime].file(f"{folder}/{network}", precision)
        rows.append(
            {
                "runtime": runtime,
                "network": network,
                "precision": precision,
                "ms": 1e3 * median(times),
                "ratio": median(dense / time for dense, time in zip(base, times, strict=True)),
                "mb": file.stat().st_size / 1e6,
                "error": float((outputs - exact).norm() / exact.norm()),
            }
        )
    return rows


def _load_and_run(load: Callable[[str, Tensor], Callable[[], Any]], path: str, images: Tensor) -> None:
    give_back_freed_memory()
    run = load(path, images)
    for _ in range(2):
        run()


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = ("runtime", "network", "precision", "ms", "dense float32 / this", "file, MB", "peak, MB", "error")
    cells = [
        (
            *(row[name] for name in ("runtime", "network", "precision")),
            f"{row['ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['mb']:.1f}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
            f"{row['error']:.1e}",
        )
        for row in rows
    ]
    return table(header, cells)


if __name__ == "__main__":
    sys.exit(main())
