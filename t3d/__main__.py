"""`t3d`, and `python -m t3d`."""

from __future__ import annotations

import sys


def main() -> int:
    """The command line, which may be stopped while it is imported."""
    try:
        from t3d.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("\nt3d: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
