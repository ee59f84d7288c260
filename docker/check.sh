#!/usr/bin/env bash
# Check every file of the images without a container engine; the tools are Python packages of extra
# `dev`. A tool that is missing is named and fails the check.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -d .venv/bin ]] && PATH="$PWD/.venv/bin:$PATH"

for tool in hadolint shellcheck yamllint check-jsonschema kubernetes-validate; do
  if ! command -v "$tool" > /dev/null; then
    echo "docker/check.sh: $tool is not installed; run 'make setup'" >&2
    exit 1
  fi
done

hadolint docker/Dockerfile
shellcheck docker/*.sh
yamllint --strict docker jobs .yamllint.yaml .pre-commit-config.yaml
check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
# The operator's own kind has no schema among Kubernetes' own; the others do.
for manifest in docker/kubernetes/*.yaml; do
  if ! grep -q '^apiVersion: flink.apache.org/' "$manifest"; then
    kubernetes-validate --strict "$manifest"
  fi
done
python docker/check_images.py
echo "docker/check.sh: all files are well-formed"
