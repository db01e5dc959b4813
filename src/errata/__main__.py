"""``python -m errata`` and the command ``errata``. An interruption ends it quietly, while it imports too."""

import sys


def main() -> None:
    """Runs the command line; exits with its code."""
    try:
        from errata.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("errata: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
