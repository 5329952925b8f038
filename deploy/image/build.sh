#!/usr/bin/env bash
# Builds an image from a Bento: `make image`.
# usage: build.sh cpu|gpu BENTO   (BENTO: the folder of a built Bento)
# IMAGE: name (pomona); MODELS: models inside; TOOL: podman, buildah or docker; UNET_PRECISION: auto, fp32 or int8;
# INDEX: a package index other than PyPI.
set -euo pipefail
variant=$1
bento=$2
here=$(dirname "$0")
name=${IMAGE:-pomona}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$bento/src/pyproject.toml")
tool=${TOOL:-$("$here/tool.sh")}
models=${MODELS:?must name the models to put into the image}

options=(--file "$here/Dockerfile" --target "$variant" --tag "$name:$version-$variant"
    --build-arg "MODELS=$models" --build-arg "UNET_PRECISION=${UNET_PRECISION:-auto}" --build-arg "VERSION=$version"
    --build-arg "REVISION=$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)")
if [ -n "${INDEX:-}" ]; then
    options+=(--build-arg "INDEX=$INDEX")
fi
epoch=$(git -C "$here" log -1 --format=%ct 2>/dev/null || echo 0)
case $tool in
docker) docker build --build-arg "SOURCE_DATE_EPOCH=$epoch" "${options[@]}" "$bento" ;;
# Docker's format, as OCI's has no HEALTHCHECK; the host's network, as a bridge cannot be made everywhere.
*) "$tool" build --format docker --layers --network host --timestamp "$epoch" "${options[@]}" "$bento" ;;
esac
