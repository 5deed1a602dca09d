"""What `forebay doctor` finds out. Each check yields findings; none raises, and none changes anything that stays."""

from forebay.doctor.findings import Finding, Level

__all__ = ["Finding", "Level"]
