"""Imported before every test module: what Chainlit must find when it is imported."""

import atexit
import os
import shutil
import tempfile

# Chainlit writes into its root when it is imported, and takes data layers, storage and secrets from the
# environment and from a file named .env in the current folder. Tests set what they need.
_ROOT = tempfile.mkdtemp(prefix="forebay-chainlit-")
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)
_FOREIGN = ("CHAINLIT_", "FOREBAY_", "LITERAL_", "APP_AWS_", "APP_GCS_", "APP_AZURE_", "DEV_AWS_")
for _name in [*os.environ]:
    if _name.startswith(_FOREIGN) and not _name.startswith("FOREBAY_TEST_"):
        del os.environ[_name]
for _name in ("DATABASE_URL", "BUCKET_NAME"):
    os.environ.pop(_name, None)
os.environ["CHAINLIT_APP_ROOT"] = _ROOT
os.environ["CHAINLIT_ENV_FILE"] = os.devnull
os.environ["FOREBAY_METRICS_ADDRESS"] = "off"  # tests of the listener choose a port of their own
