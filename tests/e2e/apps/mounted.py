"""An application that Chainlit is mounted in; run it with `python mounted.py PORT`."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from chainlit.utils import mount_chainlit
from fastapi import FastAPI

from forebay import lifespan

app = FastAPI(lifespan=lifespan)
mount_chainlit(app=app, target=str(Path(__file__).with_name("race.py")), path="/chat")

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
