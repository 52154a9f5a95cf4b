"""The command line's entry: errors become messages and exit codes here, in one place."""

from __future__ import annotations

import sys

from kdbench.errors import KdbenchError


def main() -> None:
    """Run a command. Exit codes: 0 all done, 1 some runs failed, 2 bad input, 130 interrupted."""
    from kdbench.cli.app import app

    try:
        app()
    except KdbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
