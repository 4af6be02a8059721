"""What a check says."""

from dataclasses import dataclass

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        status: `PASS`; `WARN`, something is missing that may be wanted; `FAIL`, something does not work.
        topic: What was looked at, in a word.
        says: What was found.
        fix: What to do about it; `None` where nothing needs doing.
    """

    status: str
    topic: str
    says: str
    fix: str | None = None
