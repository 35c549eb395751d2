#!/usr/bin/env bash
# Creates TLS certificates for Ray and MLflow: your own authority, and one certificate per node.
#
#   make-certificates.sh DIR NAME_OR_IP…
#
# Creates DIR/ca.crt and DIR/ca.key if they are missing, then DIR/node.crt and DIR/node.key. The
# certificate is valid for all given names and IP addresses, plus localhost and 127.0.0.1, both as a
# server and as a client certificate. For other nodes, run it again with the same DIR and NODE=name.
# Keep ca.key off the nodes: anyone who has it can create certificates that all nodes trust.
set -euo pipefail
umask 077

NODE=${NODE:-node}
DAYS=${DAYS:-365}

if [ $# -lt 1 ]; then
    echo "usage: [NODE=node] [DAYS=365] ${0##*/} DIR NAME_OR_IP..." >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "error: openssl is not on PATH; install it" >&2; exit 1; }
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
