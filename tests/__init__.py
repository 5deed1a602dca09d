"""Imported before every test module: what Chainlit must find when it is imported."""

import os
import tempfile

# Chainlit writes into its root when it is imported, and takes a data layer from the environment.
os.environ["CHAINLIT_APP_ROOT"] = tempfile.mkdtemp(prefix="forebay-chainlit-")
for _name in [*os.environ]:
    if _name.startswith("FOREBAY_") and _name != "FOREBAY_TEST_DATABASE_URL":
        del os.environ[_name]
for _name in ("DATABASE_URL", "LITERAL_API_KEY"):
    os.environ.pop(_name, None)
