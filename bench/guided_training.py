"""Step time and peak memory of guided training beside unguided: over samples, pairs, processes.

Every candidate is a training step (forward, backward, SGD) in one or more processes of its own. The
memory is what the first step adds to each process at most; then all candidates of a setting take
turns, round by round, each round in another order, and ratios are taken within the rounds.

Samples: steps of n samples, guided in one piece and in chunks (LargeBatch), against unguided.
Pairs: 1 to 100 of the hidden layers of two networks of 101 layers.
Processes: one batch of n samples, taken by one process with two threads, by one with one, or in
halves by two processes with one thread each (DistributedDataParallel over gloo), whose guidance
compares the whole batch, or each its own half ("local"). Each is compared with unguided training
in as many processes and threads.

Here are the options; settings, steps, measuring, table and picture are in training_steps/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from training_steps.measurement import measure
from training_steps.plot import plot
from training_steps.settings import GROUPS, chunk_size, settings
from training_steps.table import table

from pyguide.bench import result as results
from pyguide.bench.arguments import add_options, parse
from pyguide.bench.device import CPU
from pyguide.errors import UserError


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not yet in the file."""
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    chunk = chunk_size(quick=args.quick)
    options = {"rounds": args.rounds, "budget": args.budget, "chunk": chunk}
    result = results.new(CPU(quick=args.quick), args.commit, options, settings={})
    if args.resume:
        result = results.resume(args.out, result)
    for setting in settings(quick=args.quick):
        if setting.group not in args.only or setting.name in result["settings"]:
            continue
        start = time.perf_counter()
        entry = measure(setting, threads, args.rounds, args.budget, chunk)
        result["settings"][setting.name] = entry
        results.save(args.out, result)
        print(table(entry, setting.name), f"({time.perf_counter() - start:.0f} s)\n", flush=True)
    result["finished"] = {setting.group for setting in settings(quick=args.quick)} <= {
        entry["group"] for entry in result["settings"].values()
    }
    results.save(args.out, result)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--rounds", type=int, default=9, help="samples of each candidate, at most")
    parser.add_argument(
        "--budget", type=float, default=20.0, help="seconds of a setting's rounds; at least three"
    )
    add_options(parser, "--threads", "--out", "--resume")
    parser.add_argument("--plot", type=Path, help="draw them there as a PNG")
    parser.add_argument("--plot-from", type=Path, help="draw the results of this JSON, run nothing")
    add_options(parser, "--commit", "--quick")
    args = parse(parser, argv)
    if args.plot_from is not None and args.plot is None:
        parser.error("--plot-from needs --plot")
    try:
        result = run(args) if args.plot_from is None else results.load(args.plot_from)
        if args.plot is not None:
            plot(result, args.plot)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
