"""Two databases behind one door: connections, SQL, errors, the standby, migrations.

Its door: `Checkpoint`, `CheckpointMoved`, `Chosen`, `Clocks`, `decide`, `error_codes`, `FOREVER`, `Found`, `Imported`,
`in_memory`, `is_postgres`, `LeftOut`, `location_of`, `Looked`, `make_views`, `Marked`, `migrations`,
`Official`, `Outdated`, `Page`, `parse_url`, `Person`, `Position`, `read_shape`, `Reads`, `Row`, `sessions`,
`Shape`, `snapshot`, `Statement`, `Statements`, `Store`, `Taken`, `TOKEN_BITS`, `translated`.
"""

import logging

# Alembic tells each of its plugins at INFO when it is imported, into the log of whatever application runs.
logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
