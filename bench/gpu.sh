#!/usr/bin/env bash
# Every check and figure that needs a GPU (bench/gpu.py): results in OUT, done parts are skipped when run again.
#     bench/gpu.sh [OUT] [options of python -m bench.gpu]
# Without an installed environment, put wheels of what is missing beside a plain python with torch and transformers:
#     pip install --no-deps --target site jsonargparse docstring_parser typeshed_client soundfile soxr librosa audioread \
#       pooch decorator cffi pycparser num2words py3langid hypothesis pytest-randomly liger-kernel jiwer rapidfuzz datasets \
#       dill multiprocess openai jiter sniffio distro; export PYTHONPATH=site
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
python=python3
[ -x .venv/bin/python ] && .venv/bin/python -c "import torch" 2>/dev/null && python=.venv/bin/python
exec "$python" -m bench.gpu "$out" "${@:2}"
