#!/usr/bin/env bash
# The quickstart, shortened, once undisturbed and once with its runner killed by -9 at ten random moments and
# run again each time: the merged models and the figures' data must be the same bytes.
# Usage: tests/killed_ten_times.sh PATH/TO/pipe [SEED]      about two minutes on two cores
# PIPE_SETTINGS="" runs the quickstart at its full size.
set -euo pipefail
pipe=$(realpath "${1:?usage: $0 PATH/TO/pipe [SEED]}")
RANDOM=${2:-1}
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

read -ra settings <<<"${PIPE_SETTINGS--S pretrain_steps=300 -S finetune_steps=120 -S save_every=40 -S eval_rows=16}"
settings+=(-S device=cpu)
often=(-S stages.pretrain.checkpoint_every=20 -S stages.finetune.checkpoint_every=20)

started=$SECONDS
"$pipe" --quiet --store "$scratch/calm" run pipelines/quickstart.toml "${settings[@]}" >/dev/null
calm=$((SECONDS - started))
echo "undisturbed: $calm s"

kills=0
while [ "$kills" -lt 10 ]; do
  "$pipe" --quiet --store "$scratch/killed" run pipelines/quickstart.toml "${settings[@]}" "${often[@]}" >/dev/null 2>&1 &
  runner=$!
  pause=$((RANDOM % (calm * 1000 / 6 + 1)))
  sleep "$((pause / 1000)).$(printf '%03d' $((pause % 1000)))"
  kill -9 "$runner" 2>/dev/null || { wait "$runner" || true; break; }
  wait "$runner" 2>/dev/null || true
  kills=$((kills + 1))
  echo "kill $kills after $pause ms"
done
"$pipe" --quiet --store "$scratch/killed" run pipelines/quickstart.toml "${settings[@]}" >/dev/null
[ "$kills" = 10 ] || echo "finished after $kills kills"

for stage in "merged[full]" "merged[lora]" "merged[dora]" analysis evaluation; do
  for store in calm killed; do
    "$pipe" --quiet --store "$scratch/$store" export pipelines/quickstart.toml "$stage" "$scratch/$store-$stage" "${settings[@]}"
  done
  diff -r "$scratch/calm-$stage" "$scratch/killed-$stage"
  echo "$stage: byte-identical"
done
