"""Entry point of `cc`: compiler calls go to the C compiler, everything else to the Typer app."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli.compiler import compiler_version, hand_over, is_compiler_call
from colorcore.cpu import wait_passively

EXIT_FAILED = 1
EXIT_WRONG_CALL = 2
EXIT_INTERRUPTED = 130
OUR_ERRORS = {
    "CheckpointError",
    "DatasetError",
    "ExportError",
    "JobError",
    "OnnxFileError",
    "PaletteError",
    "PhotoRefused",
    "RecipeError",
    "StorageError",
}
"""Errors whose message is written for the user; by name, because importing them is slow."""
RESUMED = {"train", "tune"}
"""Commands that continue only with --resume."""
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
    wait_passively()
    debug = "--debug" in arguments
    return _run([argument for argument in arguments if argument != "--debug"], name, debug=debug)


def _run(arguments: list[str], name: str, *, debug: bool) -> int:
    from cli import show

    show.adapt_to_terminal()
    if "--json" not in arguments:
        return _call(arguments, name, debug=debug)[0]
    with show.json_only() as is_printed:
        code, text = _call(arguments, name, debug=debug)
        if code and not is_printed():
            show.as_json({"error": text, "exit_code": code})
    return code


def _call(arguments: list[str], name: str, *, debug: bool) -> tuple[int, str]:
    """Run a command; returns its exit code, and the error that was printed, if any."""
    import typer

    from cli import show
    from cli.app import app

    try:
        code = app(args=arguments, prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except typer.Exit as leave:
        code = leave.exit_code
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    if code == EXIT_INTERRUPTED:
        option = " with --resume" if RESUMED.intersection(arguments[:1]) else ""
        text = f"interrupted; rerun the same command{option} to continue"
        show.warn(text)
        return code, text
    return code if isinstance(code, int) else 0, ""


def _explain(error: Exception) -> tuple[int, str]:
    """Print an error in one line; returns its exit code and the line."""
    from cli import show

    if callable(usage := getattr(error, "show", None)):  # Typer's own errors print the usage, too
        usage()
        return EXIT_WRONG_CALL, str(getattr(error, "message", error))
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split()) or type(error).__name__
    if "StoppedError" in kinds:
        show.warn(text)
        return EXIT_INTERRUPTED, text
    if not kinds & OUR_ERRORS:
        if "FileNotFoundError" not in kinds:
            text = f"{type(error).__name__}: {text}"
        text += " (rerun with --debug for the traceback)"
    show.warn(f"error: {text}")
    return EXIT_WRONG_CALL if kinds & WRONG_CALLS else EXIT_FAILED, text


if __name__ == "__main__":
    sys.exit(main())
