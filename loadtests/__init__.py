"""Benchmarks. Chainlit writes into its root when it is imported; here that is a temporary folder."""

import os
import tempfile

os.environ.setdefault("CHAINLIT_APP_ROOT", tempfile.mkdtemp(prefix="forebay-loadtests-"))
os.environ.pop("DATABASE_URL", None)
