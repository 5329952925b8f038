#!/usr/bin/env bash
# One image out of a Bento: `make image`.
# usage: build.sh cpu|gpu BENTO   (BENTO: the folder of a built Bento)
# IMAGE names it (pomona), MODELS are in it, TOOL builds it (podman, buildah or docker), UNET_PRECISION is auto,
# fp32 or int8, INDEX is a package index other than PyPI.
set -euo pipefail
variant=$1
bento=$2
here=$(dirname "$0")
name=${IMAGE:-pomona}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$bento/src/pyproject.toml")
tool=${TOOL:-$("$here/tool.sh")}
models=${MODELS:?names the models that are put in}

options=(--file "$here/Dockerfile" --target "$variant" --tag "$name:$version-$variant"
    --build-arg "MODELS=$models" --build-arg "UNET_PRECISION=${UNET_PRECISION:-auto}" --build-arg "VERSION=$version"
    --build-arg "REVISION=$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)")
if [ -n "${INDEX:-}" ]; then
    options+=(--build-arg "INDEX=$INDEX")
fi
epoch=$(git -C "$here" log -1 --format=%ct 2>/dev/null || echo 0)
case $tool in
docker) docker build --build-arg "SOURCE_DATE_EPOCH=$epoch" "${options[@]}" "$bento" ;;
# HEALTHCHECK is not part of OCI's own format; the host's network, as a build may run where no bridge can be made.
*) "$tool" build --format docker --layers --network host --timestamp "$epoch" "${options[@]}" "$bento" ;;
esac
