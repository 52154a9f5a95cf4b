"""The command line's entry: errors become messages and exit codes here, in one place."""

import os
import sys


def main() -> None:
    """Run a command. Exit codes: 0 all done, 1 some runs failed, 2 bad input, 130 interrupted."""
    _leave_working_folder()
    import logging

    from kdbench.cli.app import app
    from kdbench.cli.options import open_streams, say
    from kdbench.errors import KdbenchError

    open_streams()
    log = logging.getLogger("kdbench")  # what takes long says how far it is
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except KdbenchError as error:
        say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave_working_folder() -> None:
    """Take the working folder, and the script's, off the import path, unless PYTHONPATH names them."""
    try:
        here = os.getcwd()
    except OSError:  # it has been removed
        return
    named = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    unwanted = {"", here, os.path.dirname(os.path.abspath(sys.argv[0]))} - named
    library = os.path.dirname(os.__file__)
    before = sys.path.index(library) if library in sys.path else 0  # what installations add comes behind the library
    sys.path[:before] = [entry for entry in sys.path[:before] if entry not in unwanted]


if __name__ == "__main__":
    main()
