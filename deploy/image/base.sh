#!/usr/bin/env bash
# Builds a substitute for docker.io/library/python:3.11-slim from Debian's packages, where no registry is reachable.
# usage: base.sh TOOL   (podman or docker; needs root and debootstrap)
set -euo pipefail
tool=$1
name=docker.io/library/python:3.11-slim

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
debootstrap --variant=minbase --include=python3.11,python3-venv,ca-certificates bookworm "$folder" >&2
ln -s python3.11 "$folder/usr/bin/python"
# The official image does not have these either.
rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/* "$folder"/var/log/* \
    "$folder"/usr/share/{doc,man,locale,info}/*
# Behind a proxy that intercepts TLS, this machine's certificates are the ones to trust.
cp --dereference /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/ca-certificates.crt"

bundle=/etc/ssl/certs/ca-certificates.crt
tar --create --directory "$folder" --numeric-owner . | "$tool" import \
    --change "ENV PIP_CERT=$bundle" --change "ENV SSL_CERT_FILE=$bundle" --change "ENV REQUESTS_CA_BUNDLE=$bundle" \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'CMD ["python3.11"]' - "$name"
