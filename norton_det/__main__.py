"""``python -m norton_det``: the command ``norton-det``."""

from norton_det.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
