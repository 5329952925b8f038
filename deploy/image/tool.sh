#!/usr/bin/env bash
# Prints which program builds images here: the first of podman, buildah and docker that works.
set -euo pipefail
for tool in podman buildah docker; do
    if "$tool" info >/dev/null 2>&1; then
        echo "$tool"
        exit
    fi
done
echo "None of podman, buildah and docker works on this machine." >&2
exit 1
