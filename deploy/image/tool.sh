#!/usr/bin/env bash
# Which program builds images here: podman, buildah or docker, the first that is there and answers.
set -euo pipefail
for tool in podman buildah docker; do
    if "$tool" info >/dev/null 2>&1; then
        echo "$tool"
        exit
    fi
done
echo "No podman, buildah or docker answers on this machine." >&2
exit 1
