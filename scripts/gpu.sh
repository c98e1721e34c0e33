#!/usr/bin/env bash
# What to run when a CUDA machine is at hand, in order; each step is resumable or short, and its table comes last.
#   scripts/gpu.sh smoke|bench|suite NAME [SECONDS]     results under $OUT (default: docs/results)
# The machine needs torch, numpy, pydantic, PyYAML, safetensors and pytest; DATA_DIR (default: data) holds MNIST/raw.
# bench takes foolbox, ART and matplotlib where they are, and says what it leaves out. COMMIT: where this is no checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-docs/results}"
on=(--device cuda ${COMMIT:+--commit "$COMMIT"})
case "${1:-}" in
  smoke) python3 -m pytest -q -m gpu --noconftest tests/core/test_capture.py ;;
  bench) python3 -m bench "${on[@]}" --out "$out" --images 2000 ;;
  suite) python3 -m core.run "${on[@]}" --suite "$2" --data-dir "${DATA_DIR:-data}" --out "$out/$2.zip" \
           --budget-seconds "${3:-540}" ;;
  *) sed -n 2,5p "$0"; exit 2 ;;
esac
