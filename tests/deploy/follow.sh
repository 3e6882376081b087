#!/bin/sh
# Follows deploy/README.md on six machines, which are namespaces of this one; started by tests/tests/deploy.rs as root within
# `unshare --mount --net --pid --fork --kill-child --mount-proc`, so that everything ends with it.
#
# $1: a directory with the page's commands, init.sh, node.sh, apply.sh, check.sh, send.sh, and its policy.yaml
# $2: the binary        $3: the project        $4: an empty directory
set -eu
blocks=$1 binary=$2 project=$3 work=$4

mount --make-rprivate /
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up

# A machine: its own network, and its own /etc, /var/lib, /var/log and /usr/local/bin.
machine() { # NAME NUMBER
  root=$work/$1
  mkdir -p "$root/lib" "$root/log.d" "$root/bin" "$root/shim" "$root/cwd"
  cp -a /etc "$root/etc"
  sed -i '/^postroad:/d' "$root/etc/passwd" "$root/etc/group" "$root/etc/shadow"
  printf '127.0.0.1 localhost\n10.77.0.1 q1.example\n10.77.0.2 q2.example\n10.77.0.3 q3.example\n10.77.0.11 in1.example\n' \
    > "$root/hosts"
  cp "$root/hosts" "$root/etc/hosts"
  cp "$binary" "$root/cwd/postroad"
  cp -r "$project/deploy" "$root/cwd/deploy"
  cp "$project/tests/deploy/systemctl" "$root/shim/systemctl"
  unshare --mount --net --uts sh -c "
    hostname $1
    mount --bind '$root/etc' /etc
    mount --bind '$root/lib' /var/lib
    mount --bind '$root/log.d' /var/log
    mount --bind '$root/bin' /usr/local/bin
    touch '$root/made'
    exec sleep infinity" &
  pid=$!
  echo "$pid" > "$root/pid"
  while [ ! -e "$root/made" ]; do sleep 0.05; done
  ip link add "veth$2" type veth peer name eth0 netns "$pid"
  ip link set "veth$2" master br0 up
  nsenter -t "$pid" -n ip link set lo up
  nsenter -t "$pid" -n ip addr add "10.77.0.$2/24" dev eth0
  nsenter -t "$pid" -n ip link set eth0 up
}

on() { # NAME COMMAND...
  name=$1
  shift
  (cd "$work/$name/cwd" &&
    LOG=$work/$name/log SHIM=$work/$name/shim PATH=$work/$name/shim:$PATH \
      nsenter -t "$(cat "$work/$name/pid")" --mount --net --uts --wd="$work/$name/cwd" "$@")
}

# The machine where the cluster is created.
mkdir "$work/admin"
cd "$work/admin"
printf '10.77.0.1 q1.example\n10.77.0.2 q2.example\n10.77.0.3 q3.example\n10.77.0.11 in1.example\n' >> "$work/hosts"
cp /etc/hosts "$work/hosts.before"
cat "$work/hosts.before" >> "$work/hosts"
mount --bind "$work/hosts" /etc/hosts
mkdir "$work/path"
cp "$binary" "$work/path/postroad"
export PATH="$work/path:$PATH"
sh -eux "$blocks/init.sh"
# The page shows one node of each role; the other queue nodes are made like the first.
for number in 2 3; do
  grep 'queue .*--node 1 ' "$blocks/init.sh" | sed "s/--node 1 /--node $number /; s/--out q1/--out q$number/" > "$work/join.sh"
  sh -eux "$work/join.sh"
done

for node in q1:1:queue q2:2:queue q3:3:queue in1:11:ingress out1:21:outbound ctl1:31:control; do
  name=${node%%:*} rest=${node#*:}
  number=${rest%%:*} role=${rest#*:}
  machine "$name" "$number"
  cp -r "$work/admin/$name" "$work/$name/cwd/$name"
  sed "s/\\bq1\\b/$name/g; s/\\bqueue\\b/$role/g" "$blocks/node.sh" > "$work/$name/node.sh"
  # The path that docs/reference/mail-log.md names.
  printf '\n[telemetry]\nmail_log = "/var/log/postroad/mail.log"\n' >> "$work/$name/cwd/$name/$role.toml"
  # Only a queue node has a data directory to format.
  [ "$role" = queue ] || sed -i '/cluster form/d' "$work/$name/node.sh"
  echo "== $name"
  on "$name" sh -eux "$work/$name/node.sh"
done

ready() { on "$1" sh -eu "$blocks/check.sh" > "$work/$1/metrics" 2> /dev/null; }
until_ready() {
  tries=0
  until ready "$1"; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ]; then
      echo "$1 is not ready; its log:"
      tail -20 "$work/$1/log"
      exit 1
    fi
    sleep 0.2
  done
}
for name in q1 q2 q3; do until_ready "$name"; done
cp "$blocks/policy.yaml" policy.yaml
sh -eux "$blocks/apply.sh"
for name in in1 out1 ctl1; do until_ready "$name"; done

sh -eux "$blocks/send.sh"
for name in q1 q2 q3 in1 out1 ctl1; do
  grep -q '^postroad_' "$work/$name/metrics"
done
# The data belongs to the unit's user, and no one else reads it; the mail log can be read by its group.
for name in q1 q2 q3; do
  on "$name" sh -eu -c 'test "$(stat -c %U:%a /var/lib/postroad)" = postroad:700'
done
for name in q1 q2 q3 in1 out1 ctl1; do
  on "$name" sh -eu -c 'test "$(stat -c %U:%G:%a /var/log/postroad)" = postroad:postroad:750'
  on "$name" sh -eu -c 'test "$(stat -c %U:%G:%a /var/log/postroad/mail.log)" = postroad:postroad:640'
done
tries=0
until on in1 grep -q ' INFO mail: accepted ' /var/log/postroad/mail.log; do
  tries=$((tries + 1))
  [ "$tries" -le 600 ]
  sleep 0.2
done
echo "== followed"
