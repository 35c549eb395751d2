#!/usr/bin/env bash
# Random secrets for one's own cluster: files that only their owner can read.
#
#   make-secrets.sh [DIR]        DIR is infra/compose/secrets if it is not named
#
# Files that exist stay as they are, so that running it again changes nothing. It prints names of
# files and no secret.
#
#   ray-token          the token of Ray's cluster
#   postgres-password  of PostgreSQL's user mlflow; pgpass holds it as clients read it
#   s3.json            the S3 store's users; aws-credentials holds the key as clients read it
#   mlflow-auth.ini    MLflow's administrator; mlflow-credentials holds it as clients read it
#   mlflow-secret-key  what MLflow signs its forms with
set -euo pipefail
umask 077

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/compose/secrets}
mkdir -p "$dir"
chmod 700 "$dir"

random() { # bytes, as hexadecimal digits
    od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'
}

# Write a file at once, or leave the one that is there.
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
    echo "made $dir/$name" >&2
}

value() { # of a key in a file such as aws-credentials
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

# Containers run as the owner of these files. Root's are given to the image's own user instead.
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
