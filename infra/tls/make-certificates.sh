#!/usr/bin/env bash
# Certificates for Ray's and MLflow's TLS: an authority of your own, and one certificate a node.
#
#   make-certificates.sh DIR NAME_OR_IP…
#
# DIR/ca.crt and DIR/ca.key are made when they are missing; then DIR/node.crt and DIR/node.key,
# valid for every name and IP address given (localhost and 127.0.0.1 always), as a server's and as
# a client's. Other nodes: the same command with another NODE=name, DIR being the same.
# Keep ca.key away from the nodes: whoever has it can make certificates that all of them trust.
set -euo pipefail
umask 077

NODE=${NODE:-node}
DAYS=${DAYS:-365}

if [ $# -lt 1 ]; then
    echo "usage: [NODE=node] [DAYS=365] ${0##*/} DIR NAME_OR_IP..." >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "error: expected openssl on PATH, found none" >&2; exit 1; }
dir=$1
shift
mkdir -p "$dir"

names="DNS:localhost,IP:127.0.0.1"
for name in "$@"; do
    case $name in
    localhost | 127.0.0.1) ;;
    *[!0-9.]*:* | *:*) names+=",IP:$name" ;; # IPv6
    *[!0-9.]*) names+=",DNS:$name" ;;
    *) names+=",IP:$name" ;;
    esac
done

if [ ! -e "$dir/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
        -days 3650 -subj "/CN=colorcore authority" \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
        -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$dir/ca.key" -out "$dir/ca.crt" 2>/dev/null
fi

request=$(mktemp "$dir/.request.XXXXXX")
trap 'rm -f "$request" "$request.ext"' EXIT
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
    -subj "/CN=$NODE" -keyout "$dir/$NODE.key" -out "$request" 2>/dev/null
cat >"$request.ext" <<EXTENSIONS
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=$names
EXTENSIONS
openssl x509 -req -in "$request" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial \
    -sha256 -days "$DAYS" -extfile "$request.ext" -out "$dir/$NODE.crt" 2>/dev/null
chmod 644 "$dir/ca.crt" "$dir/$NODE.crt"

echo "$dir/$NODE.crt is valid for $DAYS days and ${names//,/, }"
