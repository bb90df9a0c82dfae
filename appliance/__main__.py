"""Dispatch the program's processes: a worker, the text process, or the command line.

What this room does: names the entry of each process. The first two are looked at before anything
else is imported, so that they start fast and load only what they need.
What it knows: nothing of what the processes do.
What it never does: parse an operator's options (that is the command line's).
"""

from __future__ import annotations

import sys

_CHILD_ARGUMENTS = 4  # program, kind, "--fd", N


def main() -> int:
    """Run the process that the arguments name and return its exit code."""
    kind = sys.argv[1] if len(sys.argv) == _CHILD_ARGUMENTS and sys.argv[2] == "--fd" else ""
    if kind == "worker":
        from appliance.runtime import worker

        return worker.main(int(sys.argv[3]))
    if kind == "text-worker":
        from appliance.runtime import text_worker

        return text_worker.main(int(sys.argv[3]))
    from appliance.cli import main as command_line

    code = command_line.main()
    return 0 if code is None else int(code)


if __name__ == "__main__":
    sys.exit(main())
