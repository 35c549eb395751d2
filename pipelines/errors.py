"""The error that a job raises for its user: what was expected, what came, what to do next."""

from __future__ import annotations


class JobError(Exception):
    """A job cannot start or go on; the message is one line for the user."""


class WrongCallError(JobError):
    """The job was asked for in a way that cannot work; nothing was done."""


class StoppedError(JobError):
    """A job was asked to stop and did so in order; the message says how it goes on."""
