"""The exit codes of every command: what a script may rely on. `docs/cli.md` has the same table."""

from __future__ import annotations

SUCCESS = 0
FAILURE = 1
BAD_USAGE = 2
DOES_NOT_HOLD = 3
QUARANTINED = 4
INTERRUPTED = 130
TERMINATED = 143

MEANINGS = {
    SUCCESS: "it is done, and sound",
    FAILURE: "it could not be done; or a run is not sound, or parity is undecided",
    BAD_USAGE: "bad usage: an option, a configuration, or a folder that holds another run",
    DOES_NOT_HOLD: "parity was tested, and does not hold",
    QUARANTINED: "the run is complete but for draws that always fail",
    INTERRUPTED: "interrupted by Ctrl-C; what is finished is kept",
    TERMINATED: "ended by SIGTERM; what is finished is kept",
}
