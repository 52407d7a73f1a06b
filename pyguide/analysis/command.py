"""What ``pyguide compare`` does with its options."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.analysis.compare import compare_networks
from pyguide.analysis.datasets import Samples, batches, open_samples
from pyguide.analysis.models import load_weights, make_model
from pyguide.analysis.output import Output
from pyguide.analysis.plots import plot_best_matches, plot_heatmap
from pyguide.analysis.similarity import LayerSimilarity
from pyguide.analysis.table import layer_list, match_table
from pyguide.capture import LayerInfo, list_layers
from pyguide.capture.paths import NoSuchLayer
from pyguide.device import check_device
from pyguide.errors import UserError, described, first_line
from pyguide.ops.hsic import least_samples

__all__ = ["compare"]

# Of counts of samples, which torch keeps in 64 bits.
_LARGEST = 2**63 - 1


def compare(args: argparse.Namespace) -> int:
    """Compare, or list layers; return the exit code.

    Raises
    ------
    UserError
        For a user's mistake.
    """
    _check_options(args)
    with _threads(args.threads), _one_line_warnings():
        if args.list_layers:
            _, _, layers = _opened(args)
            print("\n".join(layer_list(name, found) for name, found in layers.items()))
            return 0
        with Output(args.out, _options(args)) as output:
            output.check(resume=args.resume)
            try:
                _report(_similarity(args, output), args, output)
            except KeyboardInterrupt:
                if not output.resumable:
                    raise
                message = "interrupted; to continue: the same command with --resume"
                print(f"pyguide: {message}", file=sys.stderr)
                return 130
    return 0


def _check_options(args: argparse.Namespace) -> None:
    least = least_samples(not args.biased)
    for option, smallest, largest in (
        ("batch_size", least, _LARGEST),
        ("samples", least, _LARGEST),
        ("image_size", 1, 1 << 14),
        ("threads", 1, 1024),
        ("workers", 0, 1024),
        # torch takes seeds from -2**63 to 2**64 - 1, and SECOND's is one more.
        ("seed", -(2**63), 2**64 - 2),
    ):
        given = getattr(args, option)
        name = option.replace("_", "-")
        if given is not None and given < smallest:
            raise UserError(f"--{name}: expected at least {smallest}, got {given}")
        if given is not None and given > largest:
            raise UserError(f"--{name}: expected at most {largest}, got {given}")
    if args.second_layers and not _has_second(args):
        raise UserError("--second-layers needs a SECOND network, or --second-weights")
    needed = ["numpy", *(["tqdm"] * (not args.quiet)), *(["matplotlib"] * (not args.no_plots))]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing and not args.list_layers:
        raise UserError(f"this needs {', '.join(missing)}: run pip install 'pyguide[compare]'")
    check_device(args.device)


def _has_second(args: argparse.Namespace) -> bool:
    return args.second is not None or args.second_weights is not None


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What the result depends on."""
    names = (
        "first second data weights second_weights layers second_layers batch_size samples "
        "image_size biased device precision seed"
    )
    given = {name: getattr(args, name) for name in names.split()}
    options = {name: str(v) if isinstance(v, Path) else v for name, v in given.items()}
    for name in ("weights", "second_weights"):
        options[f"{name}_file"] = _version(getattr(args, name))
    return options


def _version(file: Path | None) -> str | None:
    """Tells a file from one that is written over it."""
    if file is None:
        return None
    try:
        state = file.stat()
    except OSError:  # Reading it says what is wrong.
        return None
    modified = datetime.fromtimestamp(state.st_mtime, timezone.utc)
    return f"{state.st_size} bytes of {modified.isoformat(sep=' ')}"


def _names(args: argparse.Namespace) -> tuple[str, str]:
    """What the networks are called in the result: different, where they are."""

    def name(spec: str, weights: Path | None) -> str:
        return spec if weights is None else f"{spec} ({weights.name})"

    first = name(args.first, args.weights)
    if not _has_second(args):
        return first, first
    second = name(args.second or args.first, args.second_weights)
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _opened(
    args: argparse.Namespace,
) -> tuple[Samples, list[nn.Module], dict[str, list[LayerInfo]]]:
    """The data, the one or two networks, and the layers of each by its name."""
    samples = open_samples(args.data, args.image_size)
    _check_samples(samples, args)
    networks = _networks(args)
    named = zip(_names(args), networks, strict=False)
    return samples, networks, {name: _layers(name, n, samples, args) for name, n in named}


def _networks(args: argparse.Namespace) -> list[nn.Module]:
    """One network, or two."""
    networks = [_network(args.first, args.weights, args.seed, args.device)]
    if _has_second(args):
        spec = args.second or args.first
        networks.append(_network(spec, args.second_weights, args.seed + 1, args.device))
    return networks


def _network(spec: str, weights: Path | None, seed: int, device: str) -> nn.Module:
    network = make_model(spec, seed)
    if weights is not None:
        load_weights(network, weights)
    try:
        return network.to(device)
    except (Exception, SystemExit) as error:
        raise UserError(f"{spec} cannot be moved to {device}: {described(error)}") from error


def _check_samples(samples: Samples, args: argparse.Namespace) -> None:
    least = least_samples(not args.biased)
    if len(samples) < least:
        raise UserError(f"--data {args.data}: {len(samples)} samples, at least {least} are needed")
    if args.samples is not None and args.samples > len(samples):
        raise UserError(f"--samples {args.samples}: --data {args.data} has {len(samples)}")


def _layers(
    name: str, network: nn.Module, samples: Samples, args: argparse.Namespace
) -> list[LayerInfo]:
    """The layers, from two samples; this finds out whether the data fit the network."""
    x: Tensor = samples[torch.arange(2)]
    try:
        return list_layers(network, x.to(args.device))
    except (Exception, SystemExit) as error:
        # A network raises anything for an input that does not fit.
        raise UserError(
            f"{name} cannot take samples of shape {tuple(x.shape[1:])}, {x.dtype}, "
            f"from --data {args.data}: {described(error)}"
        ) from error


def _similarity(args: argparse.Namespace, output: Output) -> LayerSimilarity:
    """Read the finished result, or compute what is left of it; its sums stay until it is saved."""
    if args.resume and output.finished:
        return output.similarity()
    samples, networks, _ = _opened(args)
    output.start(resume=args.resume)
    loader = batches(
        samples,
        batch_size=args.batch_size,
        count=args.samples,
        seed=args.seed,
        workers=args.workers,
        pin_memory=torch.device(args.device).type == "cuda",
    )
    first, *others = networks
    try:
        return compare_networks(
            first,
            others[0] if others else None,
            loader,
            layers=args.layers,
            second_layers=args.second_layers,
            debiased=not args.biased,
            precision=args.precision,
            progress=not args.quiet and sys.stderr.isatty(),
            names=_names(args),
            checkpoint=output.checkpoint,
            keep_checkpoint=True,
        )
    except torch.OutOfMemoryError as error:
        raise UserError(f"{args.device} is out of memory: lower --batch-size") from error
    except UserError as error:
        # From a process that reads, the message is a whole traceback.
        last = str(error).strip().splitlines()[-1]
        raise UserError(last.removeprefix("pyguide.errors.UserError: ")) from error
    except NoSuchLayer as error:
        raise UserError(f"{error.problem}; --list-layers prints its layers") from error
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(first_line(error)) from error
    except (Exception, SystemExit) as error:
        # A network raises anything in a later batch, IndexError for a token that it lacks say.
        raise UserError(described(error)) from error


def _report(similarity: LayerSimilarity, args: argparse.Namespace, output: Output) -> None:
    paths = output.save(similarity)
    if not args.no_plots:
        paths += output.draw(similarity, plot_heatmap, plot_best_matches)
    if not args.quiet:
        print(match_table(similarity))
        print("\n".join(["", *map(str, paths)]))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show warnings as messages of the command, without the place in its code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"pyguide: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
