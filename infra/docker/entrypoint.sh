#!/usr/bin/env bash
# Entry point of the colorcore image.
#
#   colorcore-entrypoint [--dry-run] ROLE [ARGUMENT...]
#
#   head        starts Ray's head; further arguments are passed to `ray start`
#   worker      starts a Ray worker and joins the cluster at $RAY_HEAD (default head:6379)
#   job         submits the given command to the cluster whose dashboard is $RAY_DASHBOARD
#               (default http://head:8265), and shows its output
#   mlflow      starts the MLflow server
#   buckets     creates the given S3 buckets if they are missing
#   health      checks this container's role, for health checks
#   Anything else is run as a command, unchanged.
#
# --dry-run prints the command instead of running it, and reads no secret.
#
# Environment variables by role:
#
# head, worker,  RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN: the cluster's token (required);
# job            RAY_USE_TLS=1 with RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT
# head, worker   RAY_NUM_CPUS, RAY_NUM_GPUS, RAY_OBJECT_STORE_BYTES (default: what the machine has)
# head           RAY_DASHBOARD_HOST (default: loopback)
# mlflow         MLFLOW_BACKEND_STORE_URI (without a password, which belongs in PGPASSFILE),
#                MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_HOST (default: loopback), MLFLOW_PORT (5000),
#                MLFLOW_ALLOWED_HOSTS, MLFLOW_WORKERS (2); for user names and passwords:
#                MLFLOW_AUTH_CONFIG_PATH with MLFLOW_FLASK_SERVER_SECRET_KEY_FILE; for HTTPS:
#                MLFLOW_TLS_CERT with MLFLOW_TLS_KEY
# buckets        MLFLOW_S3_ENDPOINT_URL or AWS_ENDPOINT_URL, and the usual AWS credentials
set -euo pipefail

dry=
state=${TMPDIR:-/tmp}/colorcore-role

fail() {
    echo "error: $*" >&2
    exit 2
}

# Replaces this process with the command; in a dry run, only prints it.
run() {
    if [ -n "$dry" ]; then
        printf '%q ' "$@"
        echo
        return
    fi
    exec "$@"
}

remember() {
    [ -n "$dry" ] || (umask 077 && echo "$*" >"$state")
}

# Fails unless the variable names a readable, non-empty file; a dry run only checks that it is set.
need_file() {
    local name=$1
    local path=${!name-}
    [ -n "$path" ] || fail "$name is not set; set it to the path of a file"
    [ -n "$dry" ] || [ -s "$path" ] || fail "the file $path ($name) is missing or empty; mount it"
    [ -n "$dry" ] || [ -r "$path" ] || fail "user $(id -u) cannot read $path ($name); change its owner or mode"
}

check_ray() {
    [ "${RAY_AUTH_MODE-}" = token ] || fail "RAY_AUTH_MODE is '${RAY_AUTH_MODE-}'; set RAY_AUTH_MODE=token"
    [ -n "${RAY_AUTH_TOKEN-}" ] || need_file RAY_AUTH_TOKEN_PATH
    if [ "${RAY_USE_TLS-0}" = 1 ]; then
        need_file RAY_TLS_SERVER_CERT
        need_file RAY_TLS_SERVER_KEY
        need_file RAY_TLS_CA_CERT
    fi
}

ray_start() {
    local options=(--block --disable-usage-stats)
    [ -z "${RAY_NUM_CPUS-}" ] || options+=(--num-cpus="$RAY_NUM_CPUS")
    [ -z "${RAY_NUM_GPUS-}" ] || options+=(--num-gpus="$RAY_NUM_GPUS")
    [ -z "${RAY_OBJECT_STORE_BYTES-}" ] || options+=(--object-store-memory="$RAY_OBJECT_STORE_BYTES")
    run ray start "${options[@]}" "$@"
}

ray_head() {
    check_ray
    remember head
    # Else the process that serves ray:// crashes at times when it starts a client's process, for gRPC
    # then acts on the fork (ray-project/ray#63202).
    export GRPC_ENABLE_FORK_SUPPORT=0
    ray_start --head --port=6379 --ray-client-server-port=10001 \
        --dashboard-host="${RAY_DASHBOARD_HOST:-127.0.0.1}" --dashboard-port=8265 "$@"
}

ray_worker() {
    check_ray
    local address=${RAY_HEAD:-head:6379}
    remember worker "$address"
    ray_start --address="$address" "$@"
}

job() {
    check_ray
    [ $# -gt 0 ] || fail "job needs a command, such as: job cc train s3://datasets/photos --address auto"
    remember job
    run ray job submit --address "${RAY_DASHBOARD:-http://head:8265}" -- "$@"
}

mlflow_server() {
    local host=${MLFLOW_HOST:-127.0.0.1} port=${MLFLOW_PORT:-5000} scheme=http
    local options=(--host "$host" --port "$port" --workers "${MLFLOW_WORKERS:-2}")
    [ -n "${MLFLOW_BACKEND_STORE_URI-}" ] || fail "MLFLOW_BACKEND_STORE_URI is not set; set it to the database's URI"
    case ${MLFLOW_BACKEND_STORE_URI} in
    *://*:*@*) fail "MLFLOW_BACKEND_STORE_URI contains a password; move it to a file and set PGPASSFILE to its path" ;;
    esac
    options+=(--artifacts-destination "${MLFLOW_ARTIFACTS_DESTINATION:-/data/mlartifacts}")
    [ -z "${MLFLOW_ALLOWED_HOSTS-}" ] || options+=(--allowed-hosts "$MLFLOW_ALLOWED_HOSTS")
    if [ -n "${PGPASSFILE-}" ]; then
        need_file PGPASSFILE
        if [ -z "$dry" ]; then # libpq ignores a file that others can read, as mounted files often are
            local copy=${TMPDIR:-/tmp}/colorcore-pgpass
            (umask 077 && rm -f "$copy" && cat "$PGPASSFILE" >"$copy")
            export PGPASSFILE=$copy
        fi
    fi
    if [ -n "${MLFLOW_AUTH_CONFIG_PATH-}" ]; then
        need_file MLFLOW_AUTH_CONFIG_PATH
        need_file MLFLOW_FLASK_SERVER_SECRET_KEY_FILE
        if [ -z "$dry" ]; then
            MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$MLFLOW_FLASK_SERVER_SECRET_KEY_FILE")
            export MLFLOW_FLASK_SERVER_SECRET_KEY
        fi
        options+=(--app-name basic-auth)
    fi
    if [ -n "${MLFLOW_TLS_CERT-}" ]; then
        need_file MLFLOW_TLS_CERT
        need_file MLFLOW_TLS_KEY
        scheme=https
        options+=(--uvicorn-opts "--ssl-certfile $MLFLOW_TLS_CERT --ssl-keyfile $MLFLOW_TLS_KEY")
    fi
    remember mlflow "$scheme://127.0.0.1:$port/health"
    # The database's URI stays in the environment: on the command line, any user could see it.
    run mlflow server "${options[@]}"
}

buckets() {
    [ $# -gt 0 ] || fail "buckets needs the names of the buckets to create"
    remember buckets
    run python -c '
import os, sys
import boto3
from botocore.exceptions import BotoCoreError, ClientError
address = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
try:
    client = boto3.client("s3", endpoint_url=address)
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in sys.argv[1:]:
        if name not in there:
            client.create_bucket(Bucket=name)
        print("found" if name in there else "created", name)
except (BotoCoreError, ClientError) as error:
    sys.exit(f"error: cannot create buckets: {error}")
' "$@"
}

health() {
    local role argument
    [ -r "$state" ] || fail "no role has been started in this container"
    read -r role argument <"$state" || true
    case $role in
    head) run ray health-check --address "$(hostname -i | cut -d' ' -f1):6379" ;;
    worker) run ray health-check --address "$argument" ;;
    mlflow)
        # Only checks that the server responds: its certificate names the address that clients use.
        run python -c '
import ssl, sys, urllib.request
unchecked = ssl.create_default_context()
unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
urllib.request.urlopen(sys.argv[1], timeout=15, context=unchecked)
' "$argument"
        ;;
    *) ;;
    esac
}

if [ "${1-}" = --dry-run ]; then
    dry=yes
    shift
fi
[ $# -gt 0 ] || fail "expected a role (head, worker, job, mlflow, buckets, health) or a command"
role=$1
shift
case $role in
head) ray_head "$@" ;;
worker) ray_worker "$@" ;;
job) job "$@" ;;
mlflow)
    # Without arguments, this is the role; with arguments, it is MLflow's own command.
    if [ $# -eq 0 ]; then mlflow_server; else run mlflow "$@"; fi
    ;;
buckets) buckets "$@" ;;
health) health ;;
*)
    remember command
    run "$role" "$@"
    ;;
esac
