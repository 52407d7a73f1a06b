"""``python -m pyguide`` is the ``pyguide`` command."""

from pyguide.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
