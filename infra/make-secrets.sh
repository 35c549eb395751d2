#!/usr/bin/env bash
# Creates random secrets for a cluster of your own, in files that only their owner can read.
#
#   make-secrets.sh [DIR]        DIR defaults to infra/compose/secrets
#
# Existing files are kept, so running the script again changes nothing. It prints file names, but
# never a secret.
#
#   ray-token          the Ray cluster's token
#   postgres-password  password of PostgreSQL's user mlflow; clients read it from pgpass
#   s3.json            the S3 store's users; clients read the key from aws-credentials
#   mlflow-auth.ini    MLflow's administrator; clients read the login from mlflow-credentials
#   mlflow-secret-key  the key with which MLflow signs its forms
set -euo pipefail
umask 077

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/compose/secrets}
mkdir -p "$dir"
chmod 700 "$dir"

random() { # prints this many random bytes as hexadecimal digits
    od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'
}

# Writes stdin to a file atomically, or keeps the existing file.
keep() {
    local name=$1
    if [ -e "$dir/$name" ]; then
        cat >/dev/null
        echo "kept $dir/$name" >&2
        return
    fi
    local new
    new=$(mktemp "$dir/.new.XXXXXX")
    cat >"$new"
    chmod 600 "$new"
    mv "$new" "$dir/$name"
    echo "created $dir/$name" >&2
}

value() { # prints the value of a key in a file such as aws-credentials
    sed -n "s/^$1 *= *//p" "$2"
}

random 32 | keep ray-token
random 24 | keep postgres-password
keep pgpass <<FILE
*:*:*:mlflow:$(cat "$dir/postgres-password")
FILE
keep aws-credentials <<FILE
[default]
aws_access_key_id = $(random 10)
aws_secret_access_key = $(random 24)
FILE
keep s3.json <<FILE
{
  "identities": [
    {
      "name": "colorcore",
      "credentials": [
        {
          "accessKey": "$(value aws_access_key_id "$dir/aws-credentials")",
          "secretKey": "$(value aws_secret_access_key "$dir/aws-credentials")"
        }
      ],
      "actions": ["Admin", "Read", "Write", "List", "Tagging"]
    }
  ]
}
FILE
keep mlflow-credentials <<FILE
[mlflow]
mlflow_tracking_username = admin
mlflow_tracking_password = $(random 18)
FILE
keep mlflow-auth.ini <<FILE
[mlflow]
default_permission = READ
database_uri = postgresql+psycopg2://mlflow@postgres:5432/mlflow_users
admin_username = $(value mlflow_tracking_username "$dir/mlflow-credentials")
admin_password = $(value mlflow_tracking_password "$dir/mlflow-credentials")
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
FILE
random 32 | keep mlflow-secret-key

# The containers run as the owner of these files. If that is root, the image's user gets them instead.
uid=$(id -u)
if [ "$uid" = 0 ]; then
    uid=1000
    chown -R "$uid:0" "$dir"
fi
if [ "$dir" = "$here/compose/secrets" ]; then
    settings=$here/compose/.env
    [ -e "$settings" ] || cp "$here/compose/.env.example" "$settings"
    sed -i "s/^COLORCORE_UID=.*/COLORCORE_UID=$uid/" "$settings"
fi
