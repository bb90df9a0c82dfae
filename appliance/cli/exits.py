"""Say how a command ended: one sentence for the person, one exit code for the script.

What this room does: the exit codes (sysexits.h), the exception that carries both, and which code
an error's own code means.
What it knows: 0 asked for, 64 wrong usage or request, 65 input too large, 70 failed inside, 75
worth trying again, 77 not allowed, 78 configuration or model file.
What it never does: print.
"""

from __future__ import annotations

from appliance.errors import (
    AccessError,
    AdapterUnloadable,
    ApplianceError,
    BodyTooLarge,
    ConfigError,
    ContextTooLong,
    DeploymentRefused,
    DocumentRefused,
    ModelUnloadable,
    PublishRefused,
    RequestError,
    StoreError,
    concrete_classes,
)

USAGE = 64
DATA = 65
SOFTWARE = 70
RETRY = 75
NOT_ALLOWED = 77
CONFIG = 78
INTERRUPTED = 130

_BY_CLASS: tuple[tuple[type[ApplianceError], int], ...] = (
    (ConfigError, CONFIG),
    (ModelUnloadable, CONFIG),
    (AdapterUnloadable, CONFIG),
    (StoreError, CONFIG),
    (AccessError, NOT_ALLOWED),
    (ContextTooLong, DATA),
    (BodyTooLarge, DATA),
    (RequestError, USAGE),
    (DeploymentRefused, USAGE),
    (DocumentRefused, USAGE),
    (PublishRefused, USAGE),
)


class CommandFailed(Exception):
    """A command can't go on: the sentence to show, and the exit code."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code


def exit_code_of(code: str) -> int:
    """Tell the exit code for an error's stable code; one that is not known failed inside."""
    cls = {known.code: known for known in concrete_classes()}.get(code)
    if cls is None:
        return SOFTWARE
    if cls.retryable:
        return RETRY
    return next((exit_code for base, exit_code in _BY_CLASS if issubclass(cls, base)), SOFTWARE)


def failure_of(error: ApplianceError) -> CommandFailed:
    """Turn an error of this process into the end of the command."""
    return CommandFailed(error.message, exit_code_of(error.code))
