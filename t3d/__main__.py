"""`python -m t3d` is `t3d`."""

from t3d.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
