#!/bin/bash
# A real SLURM cluster of N virtual nodes on one machine, for tests.
#
#   cluster.sh start DIR [-n NODES] [-c CPUS] [-g GPUS] [-m MODE] [-t SLURMD_TIMEOUT] [-k]
#   cluster.sh stop DIR | status DIR | env DIR
#   cluster.sh kill-node DIR NODE       (kill -9: slurmd and all it runs)
#   cluster.sh start-node DIR NODE      (bring it back)
#
# MODE netns: every node has its own network namespace, hostname and /etc/hosts (root)
#      uts:   own hostname and /etc/hosts, and an address of its own on lo (root)
#      plain: no namespaces (any user): nodes are called 127.x.y.11, 127.x.y.12 ..., and
#             all have the machine's hostname
#      auto (default): the first of these that can be had
# -k keeps the jobs and node states of the last run (else they are wiped at start).
# All state is under DIR.  Use it with: eval "$(cluster.sh env DIR)"
set -u
export PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "trial cluster: $*" >&2; exit 1; }

[ $# -ge 2 ] || { sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
CMD=$1; DIR=$2; shift 2
case $CMD in start) mkdir -p "$DIR" || die "cannot make $DIR";; esac
DIR=$(cd "$DIR" 2>/dev/null && pwd -P) || { [ "$CMD" = stop ] && exit 0; die "no such directory: $DIR"; }
case $DIR in *[!A-Za-z0-9/._-]*) die "DIR may only hold A-Za-z0-9/._- : $DIR";; esac
# munged's socket path must fit in sun_path (108)
[ ${#DIR} -le 85 ] || die "DIR is too long (${#DIR} > 85): a socket lives under it"
CONF=$DIR/etc/slurm.conf
export SLURM_CONF=$CONF
unset SLURM_CONF_SERVER

KEEP= NODES=2 CPUS=8 GPUS=2 MODE=auto SLURMDTIMEOUT=15
NODEARG=
case $CMD in kill-node|start-node) NODEARG=${1:-}; [ -n "$NODEARG" ] || die "which node?"; shift;; esac
while getopts n:c:g:m:t:k o; do case $o in
  n) NODES=$OPTARG;; c) CPUS=$OPTARG;; g) GPUS=$OPTARG;; m) MODE=$OPTARG;; k) KEEP=1;;
  t) SLURMDTIMEOUT=$OPTARG;; *) exit 2;; esac; done

# one start/stop at a time for a DIR; fd 9 must not leak into the daemons
exec 9>"$DIR/.lock"
flock -w 120 9 || die "another cluster.sh is at work on $DIR"

# pid of a daemon of ours (checked: a stale pid file may name a stranger)
pid_of() { # pidfile word
  local p; p=$(cat "$1" 2>/dev/null) || return 1
  [ -n "$p" ] && [ -r "/proc/$p/cmdline" ] || return 1
  tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qF -- "$2" || return 1
  echo "$p"
}
munged_pid() { pid_of "$DIR/munge/munged.pid" "$DIR/munge/"; }
ctld_pid()   { pid_of "$DIR/run/slurmctld.pid" "$CONF"; }
slurmd_pid() { pid_of "$DIR/run/slurmd.$1.pid" "$CONF"; }
nodes()      { cat "$DIR/run/nodes" 2>/dev/null; }   # lines: name addr
mode()       { cat "$DIR/run/mode" 2>/dev/null; }
wait_for()   { # seconds command...
  local end=$(( $(date +%s%N)/1000000 + $1*1000 )); shift
  until "$@"; do [ $(( $(date +%s%N)/1000000 )) -lt $end ] || return 1; sleep 0.05; done
}
# pids of the daemons, slurmstepds and job processes of DIR (of one node, if named):
# by environment (a user's shell has SLURM_CONF, but no SLURMD_NODENAME), and, with
# namespaces, all that live in the node's
ours() {
  local n=${1:-} f i
  cd /proc && {
    if [ -z "$n" ]; then
      grep -lszxF -- "TRIAL_CLUSTER_DIR=$DIR" [0-9]*/environ
      grep -lszxF -- "SLURM_CONF=$CONF" [0-9]*/environ | xargs -r grep -lszE '^SLURMD_NODENAME='
    else
      grep -lszxF -- "TRIAL_CLUSTER_DIR=$DIR" [0-9]*/environ | xargs -r grep -lszxF "TRIAL_CLUSTER_NODE=$n"
      grep -lszxF -- "SLURM_CONF=$CONF" [0-9]*/environ | xargs -r grep -lszxF "SLURMD_NODENAME=$n"
    fi
    for f in "$DIR/ns/${n:-*}"; do
      for f in $f; do [ -e "$f" ] && mountpoint -q "$f" || continue
        i=$(stat -L -c %i "$f"); stat -L -c '%i %n' [0-9]*/ns/net 2>/dev/null | sed -n "s/^$i //p"
      done
    done
  } | cut -d/ -f1 | sort -nu
  cd / # not to hold DIR
}
can_netns() {
  [ "$(id -u)" = 0 ] && command -v ip nsenter unshare >/dev/null || return 1
  unshare --net --mount --uts sh -c 'ip link add mcprobe type veth peer name mcprobe2 &&
    ip link add mcprobebr type bridge && mount --bind /etc/hosts /etc/hosts' >/dev/null 2>&1
}
can_uts() { [ "$(id -u)" = 0 ] && unshare --mount --uts mount --bind /etc/hosts /etc/hosts >/dev/null 2>&1; }
in_node() { # NAME COMMAND...: exec it with NAME as its hostname and DIR's /etc/hosts, as the mode has it
  local name=$1 ns=(); shift
  [ -e "$DIR/ns/$name" ] && ns=(nsenter --net="$DIR/ns/$name")
  case $(mode) in
    plain) exec "$@";;
    *) exec "${ns[@]}" unshare --mount --uts sh -c \
         'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"' sh "$name" "$DIR/etc/hosts" "$@";;
  esac
}
ports_free() { # PORT .. PORT+NODES+1 on this machine
  python3 - "$PORT" "$NODES" <<'PY'
import socket, sys
p, n = map(int, sys.argv[1:])
for q in range(p, p + n + 2):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try: s.bind(("0.0.0.0", q)); s.listen(1)
    except OSError: sys.exit(1)
PY
}

make_net() { # netns mode: a switch namespace (bridge), one namespace per node, one veth to the host
  local sw=$DIR/ns/switch i name addr
  mkdir -p "$DIR/ns"
  newns() { mountpoint -q "$1" && return 0; : >"$1" && unshare --net="$1" true; }
  newns "$sw" || return 1
  insw() { nsenter --net="$sw" "$@"; }
  if ! insw ip link show br0 >/dev/null 2>&1; then
    insw ip link add br0 type bridge && insw ip link set lo up && insw ip link set br0 up || return 1
  fi
  if ! ip link show "$IF" >/dev/null 2>&1; then
    insw ip link add host0 type veth peer name "$IF" &&
    insw ip link set "$IF" netns $$ &&
    insw ip link set host0 master br0 up &&
    ip addr add "$NET.1/24" dev "$IF" && ip link set "$IF" up || return 1
  fi
  while read -r name addr; do
    mountpoint -q "$DIR/ns/$name" && continue
    newns "$DIR/ns/$name" || return 1
    insw ip link add "p-$name" type veth peer name eth0 netns "$DIR/ns/$name" 2>/dev/null || {
      # older iproute2: move it by pid
      nsenter --net="$DIR/ns/$name" sleep 5 & local sp=$!
      sleep 0.1
      insw ip link add "p-$name" type veth peer name eth0 &&
      insw ip link set eth0 netns $sp || return 1
      kill $sp; wait $sp 2>/dev/null
    }
    insw ip link set "p-$name" master br0 up &&
    nsenter --net="$DIR/ns/$name" sh -c "ip link set lo up; ip addr add $addr/24 dev eth0; ip link set eth0 up" || return 1
  done < <(nodes)
}
drop_net() {
  local f
  for f in "$DIR"/ns/*; do [ -e "$f" ] || continue; mountpoint -q "$f" && umount "$f"; rm -f "$f"; done
  [ -s "$DIR/run/if" ] && ip link del "$(cat "$DIR/run/if")" 2>/dev/null
  return 0
}

start_munged() {
  munged_pid >/dev/null && return 0
  local m=$DIR/munge
  mkdir -p "$m" && chmod 755 "$m"
  [ -s "$m/key" ] || { (umask 077; head -c 128 /dev/urandom >"$m/key"); }
  rm -f "$m/munge.sock" "$m/munge.sock.lock" "$m/munged.pid"
  # --force: a world-writable directory above DIR is only a warning
  munged --force --key-file="$m/key" --socket="$m/munge.sock" --pid-file="$m/munged.pid" \
    --log-file="$m/munged.log" --seed-file="$m/seed" 9>&- 2>"$m/start.err" ||
    { cat "$m/start.err" >&2; die "munged did not start (log: $m/munged.log)"; }
  wait_for 10 test -S "$m/munge.sock" || die "munged made no socket (log: $m/munged.log)"
}
start_ctld() {
  ctld_pid >/dev/null && return 0
  rm -f "$DIR/run/slurmctld.pid"
  (export TRIAL_CLUSTER_DIR=$DIR; in_node "$CTLHOST" slurmctld -f "$CONF") 9>&- </dev/null >"$DIR/log/slurmctld.start" 2>&1 ||
    { tail -n 5 "$DIR/log/slurmctld.start" "$DIR/log/slurmctld.log" >&2; die "slurmctld did not start"; }
  wait_for 20 ctld_pid >/dev/null || { tail -n 5 "$DIR/log/slurmctld.log" >&2; die "slurmctld wrote no pid file"; }
  wait_for 20 sh -c 'scontrol ping 2>/dev/null | grep -q "is UP"' ||
    { tail -n 5 "$DIR/log/slurmctld.log" >&2; die "slurmctld does not answer"; }
}
start_slurmd() { # name
  slurmd_pid "$1" >/dev/null && return 0
  mkdir -p "$DIR/spool/$1"
  rm -f "$DIR/run/slurmd.$1.pid"
  local log=$DIR/log/slurmd.$1.start
  (in_node "$1" env -i HOME="$HOME" PATH="$PATH" LANG=C.UTF-8 SLURM_CONF="$CONF" TRIAL_CLUSTER_DIR="$DIR" TRIAL_CLUSTER_NODE="$1" \
    slurmd -N "$1" -f "$CONF") 9>&- </dev/null >"$log" 2>&1 ||
    { tail -n 5 "$log" "$DIR/log/slurmd.$1.log" >&2; die "slurmd of $1 did not start"; }
  wait_for 20 slurmd_pid "$1" >/dev/null || { tail -n 5 "$log" "$DIR/log/slurmd.$1.log" >&2; die "slurmd of $1 wrote no pid file"; }
}
all_up() { # no node in another state than idle/mixed/allocated
  local s; s=$(sinfo -h -N -p main -o '%N %T' 2>/dev/null | sort -u) || return 1
  [ "$(wc -l <<<"$s")" = "$(nodes | wc -l)" ] && ! grep -qvE ' (idle|mixed|allocated|completing)$' <<<"$s"
}

make_conf() {
  local h i p addr name hash extra user
  mkdir -p "$DIR"/{etc,log,run,spool,state,munge,dev}
  chmod 755 "$DIR" "$DIR"/{etc,log,run,spool,munge,dev}; chmod 700 "$DIR/state"
  user=$(id -un)
  hash=$(printf %s "$DIR" | cksum | cut -d' ' -f1)
  CTLHOST=head PORT=6817
  for i in $(seq 0 63); do
    h=$(( hash + i ))
    case $MODE in
    netns) NET=10.$(( 192 + h / 250 % 32 )).$(( h % 250 )); CTLADDR=$NET.1
      { ip -4 addr; ip -4 route; } | grep -qE "(^| )${NET//./\\.}\\." && continue
      ports_free && break; PORT=$(( 10000 + h * 70 % 20000 )); ports_free && break;;
    uts)   NET=127.$(( 16 + h / 250 % 200 )).$(( h % 250 )); CTLADDR=$NET.1
      PORT=$(( 10000 + h * 70 % 20000 )); ports_free && break;;
    plain) NET=127.$(( 16 + h / 250 % 200 )).$(( h % 250 )); CTLADDR=127.0.0.1 CTLHOST=$(hostname -s)
      PORT=$(( 10000 + h * 70 % 20000 )); ports_free && break;;
    esac
  done
  CTLPORT=$PORT; SLURMDPORT=$(( PORT + 1 ))
  echo "$CTLHOST" >"$DIR/run/ctlhost"
  IF=mc$(printf %08x "$hash")
  echo "$MODE" >"$DIR/run/mode"; [ "$MODE" = netns ] && echo "$IF" >"$DIR/run/if"
  echo "$NET" >"$DIR/run/net"
  : >"$DIR/run/nodes"; NODELINES=
  { echo "127.0.0.1 localhost"; echo "$CTLADDR $CTLHOST $(hostname)"; } >"$DIR/etc/hosts"
  for i in $(seq 1 "$NODES"); do
    name=node$i addr=$NET.$(( 10 + i )) extra=NodeHostname=node$i
    [ "$MODE" = uts ] && extra+=" Port=$(( PORT + i ))"
    # the name is the address: it needs no /etc/hosts to be a MASTER_ADDR
    [ "$MODE" = plain ] && name=$addr extra="NodeHostname=$CTLHOST Port=$(( PORT + i ))"
    echo "$name $addr" >>"$DIR/run/nodes"; echo "$addr $name" >>"$DIR/etc/hosts"
    NODELINES+="NodeName=$name NodeAddr=$addr $extra CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=4000 Gres=gpu:$GPUS State=UNKNOWN"$'\n'
  done
  # GPUs that are not there: copies of /dev/null, as only a character device's trailing
  # digits become CUDA_VISIBLE_DEVICES (a plain file is accepted, but leaves it unset)
  if [ "$GPUS" -gt 0 ]; then
    local f=$DIR/dev/nvidia
    for i in $(seq 0 $(( GPUS - 1 ))); do
      [ -c "$f$i" ] || mknod -m 666 "$f$i" c 1 3 2>/dev/null || f=/dev/tty
    done
    echo "Name=gpu File=$f$([ "$GPUS" = 1 ] && echo 0 || echo "[0-$(( GPUS - 1 ))]") Flags=nvidia_gpu_env" >"$DIR/etc/gres.conf"
  else
    NODELINES=${NODELINES//Gres=gpu:0 /}; : >"$DIR/etc/gres.conf"
  fi
  # slurmd sets up its cgroup plugin though nothing here uses it, and autodetect is fatal
  # on some machines (cgroup v2 without systemd, none mounted); v1 asks for nothing
  local v c=CgroupPlugin=cgroup/v1; v=$(slurmctld -V | awk '{print $2}')
  [ "$(printf '%s\n' 24.05 "$v" | sort -V | head -n 1)" = 24.05 ] && c=CgroupPlugin=disabled
  echo "$c" >"$DIR/etc/cgroup.conf"
  local t; t=$(cat "$HERE/slurm.conf.in") || die "no template $HERE/slurm.conf.in"
  local comm=CommunicationParameters=NoCtldInAddrAny; [ "$MODE" = plain ] && comm=
  t=${t//@COMM@/$comm}; t=${t//@HOST@/$CTLHOST}; t=${t//@CTLADDR@/$CTLADDR}; t=${t//@CTLPORT@/$CTLPORT}
  t=${t//@SLURMDPORT@/$SLURMDPORT}; t=${t//@USER@/$user}; t=${t//@DIR@/$DIR}
  t=${t//@SLURMDTIMEOUT@/$SLURMDTIMEOUT}; t=${t//@NODES@/$NODELINES}
  printf '%s\n' "$t" >"$CONF"
}

do_stop() {
  local name addr p i
  p=$(ctld_pid) && scancel -Q --full --user="$(id -un)" 2>/dev/null
  for p in $(while read -r name addr; do slurmd_pid "$name"; done < <(nodes)) $(ctld_pid); do kill "$p" 2>/dev/null; done
  for i in $(seq 1 40); do [ -z "$(ours)" ] && break; sleep 0.1; done
  for p in $(ours); do kill -9 "$p" 2>/dev/null; done
  for p in $(cd /proc && grep -lszxF -- "--socket=$DIR/munge/munge.sock" [0-9]*/cmdline | cut -d/ -f1); do
    kill "$p" 2>/dev/null; wait_for 5 sh -c "! kill -0 $p 2>/dev/null"
  done
  [ "$(mode)" = netns ] && drop_net
  rm -f "$DIR"/run/*.pid "$DIR"/munge/{munged.pid,munge.sock,munge.sock.lock}
  return 0
}

[ -z "$NODEARG" ] || nodes | grep -q "^$NODEARG " || die "no node $NODEARG in $DIR (see: status)"
case $CMD in
start)
  for b in munged slurmctld slurmd scontrol sinfo; do
    command -v $b >/dev/null || die "no $b: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"; done
  T0=$(date +%s%N)
  if ctld_pid >/dev/null && [ -s "$CONF" ]; then
    MODE=$(mode)         # running: its conf stays (stop it to change options), what is missing starts
  else
    [ "$MODE" = auto ] && { can_netns && MODE=netns || { can_uts && MODE=uts; } || MODE=plain; }
    do_stop; [ -n "$KEEP" ] || rm -rf "$DIR"/{state,spool,log}; make_conf
  fi
  NET=$(cat "$DIR/run/net"); CTLHOST=$(cat "$DIR/run/ctlhost"); IF=$(cat "$DIR/run/if" 2>/dev/null)
  [ "$MODE" = netns ] && { make_net || die "cannot make the network namespaces (try -m uts or -m plain)"; }
  start_munged
  start_ctld
  while read -r name addr; do start_slurmd "$name"; done < <(nodes)
  wait_for 40 all_up || { sinfo -N -o '%N %T %E' >&2; die "nodes are not up (logs: $DIR/log)"; }
  echo "trial cluster: up in $(( ($(date +%s%N) - T0)/1000000 )) ms, mode $MODE, SLURM $(slurmctld -V | awk '{print $2}')"
  echo "export SLURM_CONF=$CONF"
  ;;
stop) do_stop; echo "trial cluster: stopped";;
env) echo "export SLURM_CONF=$CONF";;
status)
  rc=0
  for x in munged ctld; do p=$(${x}_pid) && echo "$x: pid $p" || { echo "$x: not running"; rc=1; }; done
  while read -r name addr; do p=$(slurmd_pid "$name") && echo "slurmd $name ($addr): pid $p" || { echo "slurmd $name ($addr): not running"; rc=1; }; done < <(nodes)
  [ -n "$(nodes)" ] || rc=1
  ctld_pid >/dev/null && sinfo -N -o '%N %T %C %G %E'
  exit $rc
  ;;
kill-node)
  for p in $(ours "$NODEARG"); do kill -9 "$p" 2>/dev/null; done; rm -f "$DIR/run/slurmd.$NODEARG.pid"
  ;;
start-node) start_slurmd "$NODEARG";;
*) die "unknown command $CMD";;
esac
