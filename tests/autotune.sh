#!/usr/bin/env bash
# Kernels chosen by timing (cargo feature `autotune`), on software Vulkan.
# - A training killed with -9 while it times kernels and after checkpoints ends in the same bytes as one that
#   is left alone and is given the kernels that the first chose.
# - Kernels do come from what is given: with the plainest ones, a killed and a calm training agree with each
#   other, and no longer with the first.
# Usage: tests/autotune.sh PATH/TO/pipe
# FORGET=1: the kernels of the first training are lost at every kill, which this test should then notice.
set -euo pipefail
pipe=$(realpath "${1:?usage: $0 PATH/TO/pipe}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

cat >plain.toml <<'END'
name = "kernels"

[stages.rows]
kind = "synthesize"
tasks = ["copy", "reverse"]
rows = 400
heldout = 8

[stages.model]
kind = "init"
inputs = { corpus = ["rows"] }
template = "plain"
hidden_size = 64
intermediate_size = 128
layers = 1
heads = 2
kv_heads = 2

[stages.tokens]
kind = "tokenize"
inputs = { dataset = "rows", tokenizer = "model" }
template = "plain"
cutoff = 48

[stages.train]
kind = "train"
inputs = { model = "model", data = "tokens" }
method = "dora"
rank = 4
max_steps = 60
batch_size = 4
lr = 1e-2
eval_every = 20
device = "software"
END
{ sed 's/data = "tokens"/&, kernels = "given"/' plain.toml; printf '\n[stages.given]\nkind = "download"\nsource = "given"\n'; } >given.toml

# The newest checkpoint in a store, if any.
newest() { compgen -G "$1/work/*/state-*" | sort | tail -n 1 || true; }

calm() { # STORE FILE
  "$pipe" --quiet --store "$1" run "$2" >/dev/null
  "$pipe" --quiet --store "$1" export "$2" train "$1-train"
}

# Killed at each WHEN: three seconds after the database of kernels is there (`kernels`), or at the next checkpoint.
killed() { # STORE FILE WHEN…
  local store=$1 file=$2 runner before after
  shift 2
  for after; do
    before=$(newest "$store")
    "$pipe" --quiet --store "$store" run "$file" -S stages.train.checkpoint_every=4 >log 2>&1 &
    runner=$!
    if [ "$after" = kernels ]; then
      until compgen -G "$store/work/*/kernels.db" >/dev/null || ! kill -0 "$runner" 2>/dev/null; do sleep 0.05; done
      sleep 3
    else
      while [ "$(newest "$store")" = "$before" ] && kill -0 "$runner" 2>/dev/null; do sleep 0.05; done
    fi
    kill -9 "$runner" 2>/dev/null || { cat log; echo "it ended before it could be killed"; exit 1; }
    wait "$runner" 2>/dev/null || true
    echo "$store: killed, $(basename "$(newest "$store")")"
    if [ -n "${FORGET:-}" ]; then rm -f "$store"/work/*/kernels.db*; fi
  done
  calm "$store" "$file"
}

killed first plain.toml kernels checkpoint checkpoint checkpoint
mkdir given
cp first-train/kernels.json given/
calm again given.toml
diff -r first-train again-train
echo "$(grep -c '"kernel"' given/kernels.json) kernels chosen by timing: killed or not, byte-identical"

# The first product that there is to choose is the plainest, and computes everything.
sed -i 's/"index": [0-9]*/"index": 0/' given/kernels.json
unset FORGET
killed plainest given.toml checkpoint checkpoint
calm plainest-calm given.toml
diff -r plainest-train plainest-calm-train
echo "the plainest kernels: killed or not, byte-identical"
cmp -s first-train/step-000060/adapter_model.safetensors plainest-train/step-000060/adapter_model.safetensors &&
  { echo "the plainest kernels gave the bytes of the fastest: nothing is shown"; exit 1; }
echo "other kernels, other bytes"
