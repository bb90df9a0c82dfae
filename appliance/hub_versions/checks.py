"""Look into the files of a version before anything native does.

What this room does: every check of a file's head and of its parts; the digests of tokeniser and
template against what its publisher signed; one chat rendered with its template.
What it knows: a signature says who made a file, not that a parser survives it. A template is a
program, so it is tried in a process of its own that is killed when it takes too long, not in the
one that everybody's prompts go through.
What it never does: load a file, or read a weight.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from appliance import gguf, logs
from appliance.config import Config
from appliance.contract.release import FileRole, ReleaseFile
from appliance.errors import BlobCorrupt, InvalidRequest, RequestUnsafe, WorkerLost
from appliance.gguf import GgufFault, GgufHead
from appliance.runtime.served import Observer
from appliance.runtime.text_process import TextProcess
from appliance.sync.host import Offer
from appliance.sync.threads import in_thread

_T = TypeVar("_T")
_TEMPLATE = "tokenizer.chat_template"


class Checks:
    """Looks into versions, one at a time."""

    def __init__(self, config: Config, observer: Observer, path_of: Callable[[str], str]) -> None:
        """Take the bounds of the text process; `path_of` names the place of a file."""
        self._engine = config.engine
        self._limits = config.limits
        self._observer = observer
        self._path_of = path_of
        self._turn = asyncio.Lock()

    async def look_into(self, offer: Offer) -> None:
        """Look into the files that this appliance would load; they are all here.

        Raises:
            BlobCorrupt: names the file that is none we could serve, and why.
        """
        files = offer.files
        async with self._turn:
            head = await in_thread(self._check_files, offer, files)
            template = head.metadata.get(_TEMPLATE)
            if isinstance(template, str):
                await self._try_template(template, _weights(files)[0].blob.sha256)

    def _check_files(self, offer: Offer, files: Sequence[ReleaseFile]) -> GgufHead:
        """Check every file; returns the head of the first part of the weights. Blocks."""
        heads = [
            self._checked(file, gguf.check_file) for file in files if file.role is FileRole.WEIGHTS
        ]
        for file in files:
            if file.role is FileRole.ADAPTER:
                self._checked(file, gguf.check_file)
        first, facts = _weights(files)[0], offer.release.facts
        self._checked(first, lambda _: gguf.check_split(heads))
        tokenizer = self._checked(first, lambda path: gguf.tokenizer_digest(path, heads[0]))
        for name, found, signed in (
            ("tokeniser", tokenizer, facts.tokenizer_sha256),
            ("chat template", gguf.template_digest(heads[0]), facts.template_sha256),
        ):
            if signed and found != signed:
                reason = f"its {name} is not the one that its publisher signed"
                raise BlobCorrupt(digest=first.blob.sha256, reason=reason)
        return heads[0]

    def _checked(self, file: ReleaseFile, check: Callable[[Path], _T]) -> _T:
        try:
            return check(Path(self._path_of(file.blob.sha256)))
        except GgufFault as fault:
            raise BlobCorrupt(
                digest=file.blob.sha256, reason=f"is none that can be served: {fault}"
            ) from fault

    async def _try_template(self, template: str, sha256: str) -> None:
        process, reason = TextProcess(self._engine, self._limits, self._observer), ""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(process.run())
            try:
                await process.try_template(template)
            except InvalidRequest as error:
                reason = error.reason
            except RequestUnsafe:
                reason = "its chat template does not end, or takes too much memory"
            except WorkerLost as error:  # it can't be started: that says nothing of the file
                logs.event("template_not_tried", level=logging.WARNING, reason=str(error))
            finally:
                running.cancel()
        if reason:
            raise BlobCorrupt(digest=sha256, reason=reason)


def _weights(files: Sequence[ReleaseFile]) -> list[ReleaseFile]:
    return [file for file in files if file.role is FileRole.WEIGHTS]
