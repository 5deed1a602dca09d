"""What `forebay doctor` finds out. Each check yields findings; none raises, and none changes anything that stays.

Its door: `check_database`, `check_disk`, `check_metrics`, `check_secret`, `check_storage`,
`configured_client`, `database_of`, `error`, `Finding`, `Level`, `note`, `ok`, `Target`, `warning`.
"""

from forebay.doctor.findings import Finding, Level

__all__ = ["Finding", "Level"]
