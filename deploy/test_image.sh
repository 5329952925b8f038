#!/usr/bin/env bash
# Builds an image and checks it by running it: `make test-image`.
# usage: test_image.sh cpu|gpu BENTO   (BENTO: the folder of a built Bento; MODELS, IMAGE, TOOL: see image/build.sh)
# The gpu image runs on the CPU here: what it does on a card is not checked.
# If neither a registry nor the base image is available, the base is built from Debian's packages.
set -euo pipefail
here=$(dirname "$0")
variant=$1
bento=$2
python=${PYTHON:-.venv/bin/python}
export TOOL=${TOOL:-$("$here/image/tool.sh")}
export IMAGE=${IMAGE:-pomona}
base=docker.io/library/python:3.11-slim

if ! "$TOOL" image inspect "$base" >/dev/null 2>&1 && ! "$TOOL" pull "$base"; then
    echo "No registry answers: $base is built from Debian's packages."
    "$here/image/base.sh" "$TOOL"
fi
"$here/image/build.sh" "$variant" "$bento"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$bento/src/pyproject.toml")
exec "$python" -m deploy.image.check "$TOOL" "$IMAGE:$version-$variant"
