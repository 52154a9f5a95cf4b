"""The command line's entry: errors become messages and exit codes here, in one place."""

from __future__ import annotations

import io
import sys

from kdbench.catalogue.printable import printable
from kdbench.errors import KdbenchError


def main() -> None:
    """Run a command. Exit codes: 0 all done, 1 some runs failed, 2 bad input, 130 interrupted."""
    from kdbench.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no → or ± shows ? instead
    try:
        app()
    except KdbenchError as error:
        print(printable(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        print(printable(str(error)), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
