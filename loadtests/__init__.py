"""Benchmarks. Chainlit writes into its root when it is imported; here that is a temporary folder."""

import atexit
import os
import shutil
import tempfile

if "CHAINLIT_APP_ROOT" not in os.environ:
    _ROOT = os.environ["CHAINLIT_APP_ROOT"] = tempfile.mkdtemp(prefix="forebay-loadtests-")
    atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)
os.environ.pop("DATABASE_URL", None)
os.environ.setdefault("FOREBAY_METRICS_ADDRESS", "off")  # several layers and processes are measured at once
