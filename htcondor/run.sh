#!/bin/bash
# What htcondor/run.sub starts: hepdask run CONFIG on a local cluster of the job's cores.
set -euo pipefail
exec .venv/bin/hepdask run "$1" --set "cluster={kind: local, workers: $2}"
