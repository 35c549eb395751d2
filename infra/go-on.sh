#!/usr/bin/env bash
# A `cc` command that may be started again and again, as schedulers do:
#
#   go-on cc train s3://datasets/photos --out s3://models/first
#
# runs it with --resume, and without where there is nothing to go on from (`cc` says so by its exit
# code 2, for a wrong call). SIGTERM and SIGINT become one SIGINT, upon which `cc` writes a
# checkpoint and stops; this then ends as the command did.
set -uo pipefail
set -m # so that the command does not ignore SIGINT, as background commands do

[ $# -gt 0 ] || { echo "usage: ${0##*/} COMMAND..." >&2; exit 2; }

child=
stopping=
# shellcheck disable=SC2329 # called by the trap below
stop() {
    stopping=yes
    [ -z "$child" ] || kill -INT "$child" 2>/dev/null
}
trap stop INT TERM

attempt() {
    "$@" &
    child=$!
    local code
    while true; do
        wait "$child"
        code=$?
        kill -0 "$child" 2>/dev/null || return "$code" # a signal ends wait, not always the command
    done
}

attempt "$@" --resume
code=$?
if [ "$code" = 2 ] && [ -z "$stopping" ]; then
    echo "nothing to go on from: starting anew" >&2
    attempt "$@"
    code=$?
fi
exit "$code"
