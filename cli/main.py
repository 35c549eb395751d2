"""Entry point of `cc`: compiler calls go to the C compiler, everything else to the Typer app."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli.compiler import compiler_version, hand_over, is_compiler_call

EXIT_FAILED = 1
EXIT_WRONG_CALL = 2
EXIT_INTERRUPTED = 130
OUR_ERRORS = {
    "CheckpointError",
    "DatasetError",
    "JobError",
    "PhotoRefused",
    "RecipeError",
    "StorageError",
}
"""Errors whose message is written for the user; by name, because importing them is slow."""
WRONG_CALLS = {"LocationError", "RecipeError", "WrongCallError"}
"""Errors in what the user typed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed, 2 wrong call, 130 interrupted."""
    program, *arguments = list(argv) if argv is not None else sys.argv
    name = Path(program).name
    if name == "cc" and is_compiler_call(arguments):
        return hand_over(program, arguments)
    if arguments[:1] == ["--version"]:
        from colorcore import __version__

        print(f"colorcore {__version__}")
        if name == "cc" and (version := compiler_version(program)):
            print(version)
        return 0
    debug = "--debug" in arguments
    return _run([argument for argument in arguments if argument != "--debug"], name, debug=debug)


def _run(arguments: list[str], name: str, *, debug: bool) -> int:
    import typer

    from cli.app import app

    try:
        code = app(args=arguments, prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except typer.Exit as leave:
        return _interrupted() if leave.exit_code == EXIT_INTERRUPTED else leave.exit_code
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    if code == EXIT_INTERRUPTED:
        return _interrupted()
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    print(
        "interrupted; rerun the same command to continue (add --resume for cc train and cc tune)",
        file=sys.stderr,
    )
    return EXIT_INTERRUPTED


def _explain(error: Exception) -> int:
    """Print the error as one line and return the exit code."""
    show = getattr(error, "show", None)  # Typer's usage errors print themselves
    if callable(show):
        show()
        return EXIT_WRONG_CALL
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split()) or type(error).__name__
    if "StoppedError" in kinds:
        print(text, file=sys.stderr)
        return EXIT_INTERRUPTED
    if not kinds & OUR_ERRORS:
        if "FileNotFoundError" not in kinds:
            text = f"{type(error).__name__}: {text}"
        text += " (rerun with --debug for the traceback)"
    print(f"error: {text}", file=sys.stderr)
    return EXIT_WRONG_CALL if kinds & WRONG_CALLS else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
