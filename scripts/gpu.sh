#!/usr/bin/env bash
# What to run when a CUDA machine is at hand, in order; each step is resumable or short, and its table comes last.
#   scripts/gpu.sh smoke|bench [OPTION...]|suite NAME [SECONDS [OPTION...]]   results under $OUT (default: docs/results)
#   scripts/gpu.sh bench --only layout --seeds 1                     first of all: the layout is part of every key
#   scripts/gpu.sh suite e2sad-svhn 540 --dataset synth-digits       options are those of core.run
# A suite goes on where it stopped, from FOLDER (default: var/gpu/NAME), which has to outlive the call: $OUT may not.
# Where a CUDA graph cannot be recorded, the option --eager goes without.
# The machine needs torch, numpy, pydantic, PyYAML, safetensors and pytest; DATA_DIR (default: data) holds MNIST/raw.
# synth-digits needs the Pillow of constraints.txt: its version decides the pixels, and so the keys of the stages.
# The suite figures needs matplotlib.
# bench takes foolbox, ART and matplotlib where they are, and says what it leaves out. COMMIT: where this is no checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-docs/results}"
export GAUNTLET_COMMIT="${COMMIT:-${GAUNTLET_COMMIT:-}}"
case "${1:-}" in
  smoke) python3 -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch finds no CUDA device here")'
         python3 -m pytest -q -m gpu --noconftest tests/core/test_capture.py tests/core/test_on_cuda.py ;;
  bench) python3 -m bench --device cuda --out "$out" --images 2000 "${@:2}" ;;
  suite) python3 -m core.run --device cuda --suite "$2" --data-dir "${DATA_DIR:-data}" --out "$out/$2.zip" \
           --folder "${FOLDER:-var/gpu/$2}" --budget-seconds "${3:-540}" "${@:4}" ;;
  *) sed -n 2,11p "$0"; exit 2 ;;
esac
