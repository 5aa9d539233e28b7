"""Provide the command line: the group of verbs, and exit codes.

A verb is a file beside this one: arguments to options, one call of `edgec.compiler`, its result
printed. Results go to stdout, progress to stderr. Nothing else prints or exits; whatever imports
TVM is imported by the verb that needs it, so that help is immediate.
"""

import signal
import sys
from collections.abc import Sequence

import click

from edgec.compiler.cli.advise import advise
from edgec.compiler.cli.bench import bench
from edgec.compiler.cli.board import board
from edgec.compiler.cli.calibrate import calibrate
from edgec.compiler.cli.cascade import cascade
from edgec.compiler.cli.chat import chat
from edgec.compiler.cli.compile import compile_command
from edgec.compiler.cli.db import db
from edgec.compiler.cli.deploy import deploy
from edgec.compiler.cli.evaluate import compare, evaluate
from edgec.compiler.cli.fit import fit
from edgec.compiler.cli.fleet import fleet
from edgec.compiler.cli.inspect import inspect
from edgec.compiler.cli.install import install
from edgec.compiler.cli.keys import keys
from edgec.compiler.cli.models import models
from edgec.compiler.cli.release import release
from edgec.compiler.cli.run import run
from edgec.compiler.cli.serve import serve
from edgec.compiler.cli.sign import sign
from edgec.compiler.cli.split import split
from edgec.compiler.cli.targets import targets
from edgec.compiler.cli.tune import tune
from edgec.compiler.cli.update import update
from edgec.compiler.cli.verify import verify
from edgec.compiler.errors import BadInputError, EdgecError, InterruptedRunError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code.

    0 ok, 1 a check failed, 2 usage, 3 model not supported, 4 bad input, 5 missing dependency,
    6 board or cluster, 7 stopped by a signal, 8 a signature that is missing, wrong or not trusted,
    9 no version of a model keeps the limits.
    """
    signals: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        return _run_command(arguments)
    except BaseException:
        # A KeyboardInterrupt that crosses TVM's C++ comes back as some other error.
        if signals:
            return _fail(InterruptedRunError("interrupted; nothing was written"))
        raise


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        # The code of a command that left by `context.exit`, None of others.
        return edgec.main(args=arguments, prog_name="edgec", standalone_mode=False) or 0
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EdgecError as error:
        return _fail(error)
    except BrokenPipeError:
        # The reader of our output went away.
        sys.stderr.close()
        return 0
    except OSError as error:
        # What the system refuses and no call foresaw: it is the user's to mend, not ours.
        where = f"{error.filename}: " if error.filename else ""
        return _fail(BadInputError(f"{where}{error.strerror or error}"))
    except MemoryError as error:
        return _fail(BadInputError(f"there is not enough memory: {error}".rstrip(": ")))


def _fail(error: EdgecError) -> int:
    click.echo(f"edgec: error: {error}", err=True)
    return error.exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgec", message="%(prog)s %(version)s")
def edgec() -> None:
    """Compile ONNX models into verified bundles for named targets."""


for _command in (
    compile_command,
    split,
    tune,
    fit,
    run,
    chat,
    serve,
    verify,
    bench,
    evaluate,
    compare,
    cascade,
    advise,
    inspect,
    install,
    targets,
    models,
    board,
    deploy,
    db,
    keys,
    sign,
    calibrate,
    release,
    update,
    fleet,
):
    edgec.add_command(_command)
