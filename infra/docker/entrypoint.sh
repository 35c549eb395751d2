#!/usr/bin/env bash
# What a container of colorcore's image does.
#
#   colorcore-entrypoint [--dry-run] ROLE [ARGUMENT...]
#
#   head        Ray's head; more arguments go to `ray start`
#   worker      a Ray worker of the cluster at $RAY_HEAD (default head:6379)
#   job         submits the command that follows to the cluster whose dashboard is
#               $RAY_DASHBOARD (default http://head:8265), and shows its output
#   mlflow      the MLflow server
#   buckets     makes the S3 buckets that follow, where they are missing
#   health      whether this container's role is well: for health checks
#   anything else is a command, which is run as it is
#
# --dry-run prints what would be run, and reads no secret.
#
# head, worker   RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN: the cluster's token, without which no Ray is
#                started; RAY_NUM_CPUS, RAY_NUM_GPUS, RAY_OBJECT_STORE_BYTES: default, what there
#                is; RAY_DASHBOARD_HOST: default loopback; RAY_USE_TLS=1 with RAY_TLS_SERVER_CERT,
#                RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT
# mlflow         MLFLOW_BACKEND_STORE_URI (without a password: that is PGPASSFILE's),
#                MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_HOST (default loopback), MLFLOW_PORT (5000),
#                MLFLOW_ALLOWED_HOSTS, MLFLOW_WORKERS (2); MLFLOW_AUTH_CONFIG_PATH with
#                MLFLOW_FLASK_SERVER_SECRET_KEY_FILE: users and passwords; MLFLOW_TLS_CERT with
#                MLFLOW_TLS_KEY: https
# buckets        MLFLOW_S3_ENDPOINT_URL or AWS_ENDPOINT_URL; the AWS tools' usual credentials
set -euo pipefail

dry=
state=${TMPDIR:-/tmp}/colorcore-role

fail() {
    echo "error: $*" >&2
    exit 2
}

# Run the command in this process, or print it.
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

# A file that is named by a variable must be there, unless nothing is run.
need_file() {
    local name=$1
    local path=${!name-}
    [ -n "$path" ] || fail "expected $name to name a file, found it empty"
    [ -n "$dry" ] || [ -s "$path" ] || fail "expected a file in $path ($name), found none, or an empty one"
    [ -n "$dry" ] || [ -r "$path" ] || fail "cannot read $path ($name): it belongs to another user than $(id -u)"
}

check_ray() {
    [ "${RAY_AUTH_MODE-}" = token ] || fail "expected RAY_AUTH_MODE=token, got '${RAY_AUTH_MODE-}'"
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
    [ $# -gt 0 ] || fail "expected a command after job, such as: job cc train s3://datasets/photos --address auto"
    remember job
    run ray job submit --address "${RAY_DASHBOARD:-http://head:8265}" -- "$@"
}

mlflow_server() {
    local host=${MLFLOW_HOST:-127.0.0.1} port=${MLFLOW_PORT:-5000} scheme=http
    local options=(--host "$host" --port "$port" --workers "${MLFLOW_WORKERS:-2}")
    [ -n "${MLFLOW_BACKEND_STORE_URI-}" ] || fail "expected MLFLOW_BACKEND_STORE_URI, found it empty"
    case ${MLFLOW_BACKEND_STORE_URI} in
    *://*:*@*) fail "MLFLOW_BACKEND_STORE_URI holds a password; name a file with it by PGPASSFILE" ;;
    esac
    options+=(--artifacts-destination "${MLFLOW_ARTIFACTS_DESTINATION:-/data/mlartifacts}")
    [ -z "${MLFLOW_ALLOWED_HOSTS-}" ] || options+=(--allowed-hosts "$MLFLOW_ALLOWED_HOSTS")
    if [ -n "${PGPASSFILE-}" ]; then
        need_file PGPASSFILE
        if [ -z "$dry" ]; then # libpq ignores one that others may read, as mounted files may be
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
    # The store's address stays in the environment: on the command line any user would see it.
    run mlflow server "${options[@]}"
}

buckets() {
    [ $# -gt 0 ] || fail "expected names of buckets after buckets"
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
        print("there is" if name in there else "made", name)
except (BotoCoreError, ClientError) as error:
    sys.exit(f"error: cannot make buckets: {error}")
' "$@"
}

health() {
    local role argument
    [ -r "$state" ] || fail "nothing has been started in this container"
    read -r role argument <"$state" || true
    case $role in
    head) run ray health-check --address "$(hostname -i | cut -d' ' -f1):6379" ;;
    worker) run ray health-check --address "$argument" ;;
    mlflow)
        # Whether it answers; its certificate names the address that clients know it by.
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
    # The role is the word alone; with arguments it is MLflow's own command.
    if [ $# -eq 0 ]; then mlflow_server; else run mlflow "$@"; fi
    ;;
buckets) buckets "$@" ;;
health) health ;;
*)
    remember command
    run "$role" "$@"
    ;;
esac
