#!/usr/bin/env bash
# Builds pyguide on a machine with a GPU, and verifies or measures it there: gpu.sh --help.
exec python3 "$(dirname "$0")/gpu.py" "$@"
