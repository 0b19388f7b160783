"""The ``graphopt`` command. Commands are imported when they run; ``graphopt --help`` loads only click."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import signal
import sys
from types import FrameType

import click

from graphopt.blackbox import doing
from graphopt.cli import guard, limits

COMMANDS = {
    "run": "Optimize a model and prove the result.",
    "passes": "List the passes, or one pass with its options.",
    "inspect": "Say what a model is made of.",
    "check": "Print everything that is wrong or odd with a model.",
    "validate": "Compare the outputs of two models.",
    "bench": "Time two models against each other in interleaved pairs.",
    "profile": "Say where a model's time goes, node by node.",
}


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that nothing half-written stays behind."""


class LazyGroup(click.Group):
    """A group whose commands live in ``graphopt.cli.<name>`` and are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"graphopt.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for a name that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from graphopt.nearest import did_you_mean

            ctx.fail(", ".join(filter(None, (f"no such command {args[0]!r}", did_you_mean(args[0], COMMANDS)))))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"graphopt {version('graphopt')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it.")
def root() -> None:
    """Rewrite an ONNX model to a smaller, faster one, with the proof that it is right.

    \b
    Exit codes: 0 ok, 1 a gate failed, 2 usage or recipe, 3 input model, 4 samples, 5 output,
    6 runtime or provider, 7 limit, 70 bug, 130/143 interrupted.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and leave the process with the documented exit code.

    Args:
        args: the words; ``None``: those of the process, in a child process where they open models.
    """
    signal.signal(signal.SIGTERM, _terminate)
    words = sys.argv[1:] if args is None else args
    if args is None and guard.wanted(words):
        quiet = not {"-q", "--quiet"}.isdisjoint(words)
        ended = guard.split(lambda line: None if quiet else click.echo(line, err=True))
        if ended is not None:
            sys.exit(ended if isinstance(ended, int) else _report(ended, words))
        if "--debug" in words:
            faulthandler.enable()
    code = _run(words)
    if box := doing.box:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        box.finish(code)
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        return _invoke(words)
    except limits.Expired as expired:
        from graphopt.errors import LimitError

        hint = "give more time, or --measure-seconds less"
        return _report(LimitError("GO-702", f"--timeout of {expired.seconds:g} s ran out", hint=hint), words)
    finally:
        limits.lift()


def _invoke(words: list[str]) -> int:
    try:
        code = _command(words)
    except click.ClickException as error:
        return _usage(error, words)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: nothing was written", err=True)
        return 130
    except Terminated:
        click.echo("terminated: nothing was written", err=True)
        return 143
    except BrokenPipeError:
        return 0
    except Exception as error:
        return _report(error, words)
    return code if isinstance(code, int) else 0


def _command(words: list[str]) -> object:
    try:
        # Outside standalone mode click returns the code of an Exit, and otherwise what the command returns.
        return root.main(args=words, prog_name="graphopt", standalone_mode=False, obj=tuple(words))
    except Exception as error:
        interruption = _interruption(error)
        if interruption is not None:
            raise interruption from error
        raise


def _interruption(error: BaseException) -> BaseException | None:
    """What a signal raised, where native code that it went through made an error of its own of it."""
    cause = error.__cause__ or error.__context__
    if cause is None or isinstance(cause, (limits.Expired, Terminated, KeyboardInterrupt)):
        return cause
    return _interruption(cause)


def _report(error: Exception, words: list[str]) -> int:
    limits.lift()  # the report must not run out of what the command ran out of
    from graphopt.cli.errors import report_error

    return report_error(error, debug="--debug" in words, as_json="--json" in words)


def _usage(error: click.ClickException, words: list[str]) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    from graphopt.cli.errors import report_error
    from graphopt.errors import UsageError

    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "graphopt"
    known = UsageError("GO-201", error.format_message().rstrip("."), hint=f"`{command} --help` lists what it takes")
    return report_error(known, debug=False, as_json="--json" in words)


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise Terminated
