#!/bin/sh
# The chat of minimal.py, whose server writes to its journal alone, and a process of its own that writes to the database,
# so that a slow database, or a lot to write, takes nothing from the chats. Arguments go to `chainlit run`.
set -eu
cd "$(dirname "$0")"
export FOREBAY_WRITER=external

forebay drain --app minimal.py --watch &
drain=$!
chainlit run minimal.py "$@" &
chat=$!

trap 'kill "$chat"' INT TERM
wait "$chat" || wait "$chat" || true # a signal ends the first
kill "$drain" 2>/dev/null || true # Ctrl-C has reached it too
wait "$drain" # until everything is in the database
