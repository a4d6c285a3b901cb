#!/usr/bin/env bash
# A Slurm of two nodes on this machine, for tests: Debian's unmodified `slurm-wlm` and `munge`, as root.
#
#   tests/slurm/start.sh DIR [PORT]     starts it in the new folder DIR; prints what to `export`
#   tests/slurm/stop.sh DIR             ends it; what it started and nothing else
#
# The two nodes share the host, its file system and its processes; each offers two cores, whatever the
# machine has, and two GPUs that are none. No accounting database: `sacct` knows nothing, as on many small clusters. PORT and the
# three after it must be free.
set -euo pipefail

for program in munged slurmctld slurmd sbatch; do
  command -v "$program" >/dev/null || { echo "\`$program\` is missing: apt-get install slurm-wlm munge" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "only root can start it" >&2; exit 1; }

dir=$(mkdir -p "$1" && cd "$1" && pwd)
port=${2:-17817}
host=$(hostname -s)
mkdir -p "$dir"/{state,spool-n0,spool-n1,tmp-n0,tmp-n1,log,munge}
chmod 711 "$dir"
chmod 700 "$dir/munge"

cat >"$dir/slurm.conf" <<CONF
ClusterName=pipetest
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
TmpFS=$dir/tmp-%n
SlurmctldPidFile=$dir/ctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/ctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
GresTypes=gpu
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/jobcomp.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=1
MinJobAge=300
KillWait=5
NodeName=n0 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=p Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
PartitionName=closed Nodes=n0 Default=NO MaxTime=INFINITE State=DOWN
CONF

for node in n0 n1; do echo "NodeName=$node Name=gpu File=/dev/null,/dev/zero"; done >"$dir/gres.conf"

export SLURM_CONF=$dir/slurm.conf
head -c 1024 /dev/urandom >"$dir/munge/key"
chmod 400 "$dir/munge/key"

# A daemon stays in the foreground, so that its number is known and only it is ended.
begin() {
  local name=$1
  shift
  setsid "$@" >"$dir/log/$name.out" 2>&1 </dev/null &
  echo $! >"$dir/$name.mypid"
}

begin munged munged --key-file="$dir/munge/key" --socket="$dir/munge.sock" --pid-file="$dir/munge/pid" \
  --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --force --foreground
for _ in $(seq 100); do [ -S "$dir/munge.sock" ] && break; sleep 0.05; done
begin ctld slurmctld -D -f "$SLURM_CONF"
for node in n0 n1; do begin "$node" slurmd -D -N "$node" -f "$SLURM_CONF"; done

for _ in $(seq 300); do
  if [ "$(sinfo -h -p p -t idle -o %D 2>/dev/null)" = 2 ]; then
    echo "export SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  sleep 0.1
done
echo "Slurm did not start; see $dir/log" >&2
tail -n 5 "$dir"/log/* >&2
exit 1
