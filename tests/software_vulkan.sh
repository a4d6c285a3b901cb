#!/usr/bin/env bash
# The quickstart's whole pipeline, shortened, through wgpu on software Vulkan: once undisturbed, once
# killed with -9 in the middle of training and run again. The results must be the same bytes.
# Usage: tests/software_vulkan.sh PATH/TO/pipe
set -euo pipefail
pipe=$(realpath "${1:?usage: $0 PATH/TO/pipe}")
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

short=(-S device=software -S pretrain_steps=50 -S finetune_steps=50 -S save_every=25 -S eval_rows=8
  -S stages.pretrain.batch_size=4 -S stages.finetune.batch_size=4
  -S stages.old_tasks.heldout=24 -S stages.new_tasks.heldout=24)
run() { "$pipe" --store "$1" run pipelines/quickstart.toml "${short[@]}" "${@:2}"; }

run "$scratch/calm"

# How often training saves its state is not part of any key: the results must be the same all the same.
often=(-S stages.pretrain.checkpoint_every=10 -S stages.finetune.checkpoint_every=10)
# Not through `run`: the process to kill is the runner itself, not a shell around it.
"$pipe" --store "$scratch/killed" run pipelines/quickstart.toml "${short[@]}" "${often[@]}" >"$scratch/killed.log" 2>&1 &
runner=$!
for _ in $(seq 1800); do # wait until a training stage has saved something to go on from
  compgen -G "$scratch/killed/work/*/state-*" >/dev/null && break
  kill -0 "$runner" 2>/dev/null || break
  sleep 0.1
done
kill -9 "$runner" 2>/dev/null && echo "killed the runner with -9 in training" || { cat "$scratch/killed.log"; exit 1; }
wait "$runner" || true
run "$scratch/killed"

for stage in 'merged[full]' 'merged[lora]' 'merged[dora]' analysis evaluation; do
  for store in calm killed; do
    "$pipe" --store "$scratch/$store" export pipelines/quickstart.toml "$stage" "$scratch/$store-$stage" "${short[@]}"
  done
  diff -r "$scratch/calm-$stage" "$scratch/killed-$stage"
  echo "$stage: byte-identical"
done
