"""The options of ``pyguide compare``; what they do is imported when it is done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_compare_parser"]

_DESCRIPTION = """\
Compute the CKA of every layer of one network with every layer of another, or of the first with
itself, in one pass over a data set; write similarity.npz, similarity.json, heatmap.png and
best_matches.png into the folder --out.

FIRST and SECOND name functions that return a network, as module:function or file.py:function,
with arguments as module:function?depth=20&stem=small (in quotes, because of the &). Modules are
also looked for in the working directory.

DATA is a folder of images (in folders of classes or not; each is resized, cut to the centre and
normalised as for ImageNet), a .npy or .pt file with one tensor (samples, ...), or one of
mnist5000, mnist1d. The samples are shuffled once, with the seed.

By default a layer is a module that calls no other. Globs choose others: * stands for one part of
a path, ** for any number. --list-layers prints what there is.
"""

_EXAMPLES = """\
examples:
  pyguide compare pyguide.experiments.networks:resnet18 --data photos
      a network with itself: which of its layers are alike?
  pyguide compare torchvision.models:resnet18 torchvision.models:resnet50 --data photos \\
      --weights 18.pth --second-weights 50.pth --layers 'layer*' --second-layers 'layer*'
  pyguide compare 'my_models.py:make?width=64' --weights a.pt --second-weights b.pt --data x.npy
      one architecture, trained twice
  pyguide compare my_models.py:make --data x.npy --list-layers
"""


def add_compare_parser(subparsers: Any) -> None:
    """Add ``compare`` to the sub-parsers of a command line.

    The parsed arguments carry ``func(args) -> int``, which raises
    :class:`pyguide.errors.UserError` for a user's mistake.

    Parameters
    ----------
    subparsers : the object that ``ArgumentParser.add_subparsers`` returns

    Examples
    --------
    >>> import argparse
    >>> from pyguide.analysis.parser import add_compare_parser
    >>> parser = argparse.ArgumentParser()
    >>> add_compare_parser(parser.add_subparsers())
    >>> parser.parse_args(["compare", "my_models.py:make", "--data", "mnist5000"]).batch_size
    256
    """
    parser = subparsers.add_parser(
        "compare",
        help="compare the layers of two networks over a data set",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("first", metavar="FIRST", help="the network of the rows")
    add(
        "second",
        metavar="SECOND",
        nargs="?",
        help="that of the columns (default: FIRST; another one where --second-weights is given)",
    )
    add("--data", required=True, metavar="DATA", help="folder, .npy, .pt or name")
    for option, name in (("--weights", "FIRST"), ("--second-weights", "SECOND")):
        add(
            option,
            type=Path,
            metavar="FILE",
            help=f"state_dict of {name}: a file of torch.save without other objects, "
            "or .safetensors",
        )
    add("--layers", nargs="+", metavar="GLOB", help="layers of FIRST")
    add("--second-layers", nargs="+", metavar="GLOB", help="layers of SECOND (default: its own)")
    add("--batch-size", type=int, default=256, metavar="N", help="(default: 256)")
    add("--samples", type=int, metavar="N", help="compare on so many samples (default: all)")
    add("--image-size", type=int, default=224, metavar="N", help="of a folder (default: 224)")
    add("--biased", action="store_true", help="the biased estimator, which depends on batch size")
    add("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    add("--precision", choices=["highest", "high", "medium"], help="of float32 products on GPUs")
    add("--threads", type=int, metavar="N", help="threads of torch and pyguide (default: torch's)")
    add(
        "--seed", type=int, default=0, help="of the order, of FIRST's and, plus 1, SECOND's weights"
    )
    add("--workers", type=int, default=0, metavar="N", help="processes that read data (default: 0)")
    add("--out", type=Path, default=Path("compare-out"), help="folder (default: compare-out)")
    add("--resume", action="store_true", help="continue the interrupted comparison in --out")
    add("--no-plots", action="store_true", help="no PNGs")
    add("--list-layers", action="store_true", help="print the layers of the networks and stop")
    add("--quiet", action="store_true", help="no progress, no table")
    parser.set_defaults(func=_compare)


def _compare(args: argparse.Namespace) -> int:
    from pyguide.analysis.command import compare

    return compare(args)
