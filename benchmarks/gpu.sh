#!/usr/bin/env bash
# Everything that needs a GPU, in three parts of less than ten minutes each:
#   bash benchmarks/gpu.sh 1     GPT-J-6B, and how near the work comes to the machine
#   bash benchmarks/gpu.sh 2     Llama-2-7B, and closed forms against dense systems
#   bash benchmarks/gpu.sh 3     searches, traces and moments against other ways
# Without a number all parts are done. Results go to $OUT, or to benchmarks/results.
# Needs a Python with torch and transformers; edutools need not be installed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
FOLDER=${OUT:-benchmarks/results}
SECONDS=0
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# The version of a package that is not installed: what pip would have written down.
if ! "$PYTHON" -c 'import importlib.metadata as m; m.version("edutools")' 2>/dev/null; then
  place=$(mktemp -d)
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
  mkdir "$place/edutools-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: edutools\nVersion: %s\n' "$version" \
    >"$place/edutools-$version.dist-info/METADATA"
  PYTHONPATH=$PYTHONPATH:$place
fi

failed=0
measure() { # measure SECONDS MODULE [OPTIONS]: at most so long, then the next
  local limit=$1 module=$2
  shift 2
  [ -f "benchmarks/$module.py" ] || { echo "no benchmark $module"; return; }
  echo "== $module $* (at $SECONDS s)"
  timeout "$limit" "$PYTHON" -m "benchmarks.$module" --device cuda --folder "$FOLDER" "$@" ||
    { echo "!! $module $* ended with $?"; failed=1; }
}

part=${1:-all}
if [ "$part" = 1 ] || [ "$part" = all ]; then
  measure 420 full_size --model gptj-6b --deadline 390
  measure 150 limit --model gptj-6b
fi
if [ "$part" = 2 ] || [ "$part" = all ]; then
  measure 420 full_size --model llama2-7b --deadline 390
  measure 150 solve
fi
if [ "$part" = 3 ] || [ "$part" = all ]; then
  measure 60 trace
  measure 60 moments
  measure 450 search # keeps each number of facts as it comes
fi
echo "== done at $SECONDS s; results in $FOLDER"
exit $failed
