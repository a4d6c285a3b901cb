#!/usr/bin/env bash
# The alpaca pipelines as they are, on a scale model: a hub on loopback serves a generated model and generated
# rows under the real repositories' names; sizes and steps are set from outside, nothing else. Then again
# with the hub gone: all cached.
# Usage: tests/alpaca_scale_model.sh PATH/TO/pipe PATH/TO/loopback      under a minute on two cores
set -euo pipefail
pipe=$(realpath "${1:?usage: $0 PATH/TO/pipe PATH/TO/loopback}")
loopback=$(realpath "${2:?usage: $0 PATH/TO/pipe PATH/TO/loopback}")
repository=$(realpath "$(dirname "$0")/..")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/hub" "$scratch/pipelines"
cp "$repository"/pipelines/alpaca_*.toml "$scratch/pipelines"
cd "$scratch"

cat >model.toml <<'END'
[stages.rows]
kind = "synthesize"
seed = 3
tasks = ["reverse", "first", "sort"]
rows = 240
heldout = 1

[stages.model]
kind = "init"
inputs = { corpus = "rows" }
template = "alpaca"
hidden_size = 32
intermediate_size = 64
heads = 4
kv_heads = 2
vocab_size = 400
END
"$pipe" --quiet --store made run model.toml
"$pipe" --quiet --store made export model.toml model "hub/meta-llama/Llama-2-7b-hf"
"$pipe" --quiet --store made export model.toml rows rows
mkdir -p hub/datasets/yahma/alpaca-cleaned
cp rows/data.json hub/datasets/yahma/alpaca-cleaned/alpaca_data_cleaned.json

coproc HUB { exec "$loopback" hub; }
read -r -u "${HUB[0]}" HF_ENDPOINT
export HF_ENDPOINT HF_HOME=$scratch/home HF_TOKEN=any
settings=(
  -S dataset=hf:datasets/yahma/alpaca-cleaned/alpaca_data_cleaned.json
  -S device=cpu -S devices=2 -S heldout=16 -S rank=4 -S alpha=8 -S accumulation=2
  -S max_steps=10 -S save_every=2 -S 'analysed=[2,4,6,8,10]' -S eval_rows=4
)
run() { "$pipe" --store store run "pipelines/alpaca_$1.toml" "${settings[@]}" "${@:2}" 2>&1; }
run lora | grep " stages: "
run dora | grep " stages: "
# the shared stages are there by now: the estimate of the arms needs no run
"$pipe" --store store plan pipelines/alpaca_compare.toml "${settings[@]}" -S batch_size=2 >planned.log
grep "takes about" planned.log
run compare -S 'arms=["full","lora","dora"]' -S batch_size=2 | grep " stages: "

exec {HUB[1]}>&-
wait "$HUB_PID" || true
run lora | tee again.log | grep " stages: "
grep -Eq '^[0-9]+ stages: [0-9]+ cached, 0 ran, 0 failed' again.log

"$pipe" --quiet --store store export pipelines/alpaca_compare.toml analysis figures "${settings[@]}" -S 'arms=["full","lora","dora"]' -S batch_size=2
python3 - <<'END'
import json, pathlib
found = json.load(open("figures/analysis.json"))
text = json.dumps(found)
assert all(name in text for name in ("full", "lora", "dora", "q_proj", "v_proj")), found.keys()
assert {path.suffix for path in pathlib.Path("figures").iterdir()} >= {".svg", ".png", ".csv"}
END
echo "the scale model ran"
