"""Two databases behind one door: connections, SQL, errors, the standby, migrations."""

import logging

# Alembic tells each of its plugins at INFO when it is imported, into the log of whatever application runs.
logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
