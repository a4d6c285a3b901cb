#!/usr/bin/env bash
# Ends the Slurm that start.sh started in DIR.
set -uo pipefail
export SLURM_CONF=$1/slurm.conf
scancel --user=root 2>/dev/null
for name in n0 n1 ctld munged; do
  [ -f "$1/$name.mypid" ] && kill "$(cat "$1/$name.mypid")" 2>/dev/null
done
for name in n0 n1 ctld munged; do
  [ -f "$1/$name.mypid" ] || continue
  pid=$(cat "$1/$name.mypid")
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null
done
# Steps whose `srun` was killed wait for a controller that is gone.
for pid in $(pgrep -x slurmstepd); do
  case $(readlink "/proc/$pid/fd/3") in
    "$1"/log/*) pkill -9 -P "$pid"; kill -9 "$pid" ;;
  esac
done
exit 0
