#!/usr/bin/env bash
# Makes a `cc` command safe to restart any number of times, as schedulers do:
#
#   go-on cc train s3://datasets/photos --out s3://models/first
#
# The command runs with --resume. If there is nothing to resume, which `cc` reports with exit code 2
# (wrong usage), it runs again without --resume. SIGTERM and SIGINT are forwarded as SIGINT, on which
# `cc` writes a checkpoint and stops. The exit code is the command's.
set -uo pipefail
set -m # job control: without it, background commands ignore SIGINT

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
        kill -0 "$child" 2>/dev/null || return "$code" # a signal ends wait early
    done
}

attempt "$@" --resume
code=$?
if [ "$code" = 2 ] && [ -z "$stopping" ]; then
    echo "nothing to resume: starting from scratch" >&2
    attempt "$@"
    code=$?
fi
exit "$code"
