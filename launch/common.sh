# What the launchers share; they source it, and go on in the repository's root.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

fail() {
    echo "error: $1" >&2
    exit 2
}

# A word as a shell reads it back: bare where that is safe, else in quotes.
quote() {
    local word words=()
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
        words+=("$word")
    done
    echo "${words[*]}"
}

# need VARIABLE PATTERN EXAMPLE: the variable is set and matches as a whole.
need() {
    [[ ${!1:-} =~ ^($2)$ ]] || fail "set $1, as in $1=$3 (now: '${!1:-}'); $0 --help tells more"
}

# Patterns for `need`; a name is one of Kubernetes and of Google Cloud.
# shellcheck disable=SC2034 # read by the launchers
a_word='[A-Za-z0-9][A-Za-z0-9_.:-]*' a_number='[1-9][0-9]*' a_name='[a-z]([a-z0-9-]*[a-z0-9])?'

dry_run=false
# Runs a command, or prints it under --dry-run; call_with TEXT COMMAND... gives it the text as its input.
call() {
    if $dry_run; then quote "$@"; else "$@"; fi
}
call_with() {
    if $dry_run; then printf "%s <<'END'\n%s\nEND\n" "$(quote "${@:2}")" "$1"; else "${@:2}" <<<"$1"; fi
}

# The tool is there, or none is needed.
tool() {
    $dry_run || command -v "$1" >/dev/null || fail "$1 not found: $2"
}

# Exit codes after which the same command goes on: preempted, a process lost or hung, killed from outside.
resumable() {
    case $1 in 75 | 76 | 137 | 143) ;; *) return 1 ;; esac
}
